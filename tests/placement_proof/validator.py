"""The judge of a plan: allowed or not, and its score, from its pins, without the planner's help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import ceil, prod

from attrs import evolve

from kvmhooks.placement.model import Plan
from kvmhooks.placement.search.objective import ORDER
from tests.placement_proof.brute import (
    GIB_PAGE,
    MIB_PAGE,
    ORDINARY,
    PARTS,
    SMALL,
    are_threads_told,
    dedicated_vcpus,
    fast,
    judged_cpus,
    may_hold,
    pool_left,
)
from tests.placement_proof.capacity import Capacity, Cpus, Place


def violations(capacity: Capacity, plan: Plan) -> list[str]:
    """Everything about the plan that is not allowed, or not as it says of itself."""
    found = [*_shape(capacity, plan)]
    if capacity.given is None and dedicated_vcpus(capacity):
        chosen = frozenset(plan.housekeeping) - capacity.kept_before
        found += _reserves(capacity, chosen)
        capacity = evolve(capacity, reserves=chosen)
    if found:
        return found  # the rest would stumble over it
    return [
        *_pins(capacity, plan),
        *_guest_cores(capacity, plan),
        *_siblings(capacity, plan),
        *_cells(capacity, plan),
        *_memory(capacity, plan),
        *_beside_pages(capacity, plan),
        *_floating(capacity, plan),
        *_helpers(capacity, plan),
        *_devices(capacity, plan),
        *_score(capacity, plan),
    ]


def _shape(capacity: Capacity, plan: Plan) -> Iterator[str]:
    spec = capacity.spec
    every = list(range(spec.cpu.vcpus))
    if [pin.vcpu for pin in plan.vcpus] != every:
        yield "the vCPUs are not those of the spec, in order"
    if set(plan.dedicated) != dedicated_vcpus(capacity):
        yield f"dedicated: {plan.dedicated}, expected {sorted(dedicated_vcpus(capacity))}"
    if sorted(vcpu for cell in plan.cells for vcpu in cell.vcpus) != every:
        yield "not every vCPU is in one cell"
    if [cell.id for cell in plan.cells] != list(range(len(plan.cells))):
        yield "cells are not numbered from 0 on"
    shape = plan.topology
    levels = (shape.sockets, shape.dies, shape.clusters, shape.cores, shape.threads)
    if prod(levels) != spec.cpu.vcpus:
        yield f"topology: {levels} is not {spec.cpu.vcpus} vCPUs"
    for level in ("sockets", "dies", "cores", "threads"):
        if getattr(spec.cpu, level) not in {None, getattr(shape, level)}:
            yield f"topology: {level} is not as asked"
    if any(cell.node not in capacity.cpus for cell in plan.cells):
        yield "a cell is on a node that is not there"
    if not plan.why:
        yield "nothing is explained"


def _reserves(capacity: Capacity, chosen: Cpus) -> Iterator[str]:
    """Rule 9: what was chosen is a reserve on each of some nodes, or a single CPU."""
    usable = capacity.free - capacity.isolated
    if not chosen <= usable:
        yield f"reserves: CPUs {sorted(chosen - usable)} are not free"
    if len(chosen) == 1 and not capacity.kept_before and len(capacity.online) <= 4:
        return
    for here in capacity.cpus.values():
        cores = {capacity.core[cpu] for cpu in chosen & here}
        sizes = [len(core & here & usable) for core in cores]
        is_core = len(cores) == 1 and sizes[0] > 1
        alike = {(capacity.l3[min(core)], capacity.rank(core)) for core in cores}
        is_pair = sizes == [1, 1] and len(alike) == 1
        whole = frozenset(cpu for core in cores for cpu in core & here & usable)
        if cores and (not (is_core or is_pair) or whole != chosen & here):
            yield f"reserves: CPUs {sorted(chosen & here)} are no reserve"


def own_cpus(plan: Plan) -> Cpus:
    """The CPUs of the dedicated vCPUs."""
    return frozenset(cpu for pin in plan.vcpus if pin.vcpu in plan.dedicated for cpu in pin.cpus)


def _pins(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rule 1, and what nobody may be given."""
    pins = [pin.cpus for pin in plan.vcpus if pin.vcpu in plan.dedicated]
    if any(len(cpus) != 1 for cpus in pins):
        yield "a dedicated vCPU has not one CPU"
    own = own_cpus(plan)
    if len(own) != sum(map(len, pins)):
        yield "a CPU is given twice"
    if not own <= capacity.eligible:
        yield f"CPUs {sorted(own - capacity.eligible)} are not eligible"
    for cell in plan.cells:
        near = capacity.cpus[cell.node]
        if any(not frozenset(plan.vcpus[vcpu].cpus) <= near for vcpu in cell.vcpus):
            yield f"a vCPU of cell {cell.id} is not on node {cell.node}"
    expected = own if capacity.spec.isolation.exclusive else frozenset()
    if frozenset(plan.exclusive) != expected:
        yield f"exclusive: {plan.exclusive}, expected {sorted(expected)}"
    if capacity.given is not None and frozenset(plan.housekeeping) != capacity.housekeeping:
        yield f"housekeeping: {plan.housekeeping}, expected {sorted(capacity.housekeeping)}"


def _on_cores(capacity: Capacity, plan: Plan) -> list[tuple[set[Cpus], Cpus]]:
    """For each dedicated guest core, the cores that it is on, and its CPUs."""
    threads = plan.topology.threads
    found = []
    for first in range(0, len(plan.vcpus), threads):
        pins = plan.vcpus[first : first + threads]
        if pins[0].vcpu in plan.dedicated:
            cpus = frozenset(cpu for pin in pins for cpu in pin.cpus)
            found.append(({capacity.core[cpu] for cpu in cpus}, cpus))
    return found


def _siblings(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rule 2: no guest takes siblings for cores, unless somebody said so."""
    on_core = Counter(core for cores, _ in _on_cores(capacity, plan) for core in cores)
    if max(on_core.values(), default=0) > 1 and not are_threads_told(capacity):
        yield "the guest would take siblings for cores"


def _guest_cores(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rules 2 and 3."""
    smt, idle = capacity.spec.cpu.smt, set[int]()
    placed = _on_cores(capacity, plan)
    on_core = Counter(core for cores, _ in placed for core in cores)
    for cores, cpus in placed:
        if len(cores) != 1:
            yield f"a guest core is on {len(cores)} cores: CPUs {sorted(cpus)}"
            continue
        (core,) = cores
        if smt != "share" and (on_core[core] > 1 or core not in capacity.whole):
            yield f"core {sorted(core)} is not whole, or not one guest core's alone"
        if smt == "require" and cpus != core:
            yield f"core {sorted(core)} is not used whole"
        if smt == "isolate":
            idle |= core - cpus
    if frozenset(plan.idle) != idle:
        yield f"idle: {plan.idle}, expected {sorted(idle)}"
    threads = plan.topology.threads
    own = set(plan.dedicated)
    for first in range(0, len(plan.vcpus), threads):
        core_of_guest = set(range(first, first + threads))
        if 0 < len(core_of_guest & own) < threads:
            yield f"guest core {sorted(core_of_guest)} is partly dedicated"
        if sum(bool(core_of_guest & set(cell.vcpus)) for cell in plan.cells) > 1:
            yield f"guest core {sorted(core_of_guest)} is in two cells"


def _cells(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rules 4 and 5."""
    memory = capacity.spec.memory
    for cell in plan.cells:
        allowed = memory.nodes is None or cell.node is None or cell.node in memory.nodes
        if not allowed:
            yield f"cell {cell.id} is on node {cell.node}, not on one of {memory.nodes}"
        if not may_hold(capacity, cell.node, has_vcpus=bool(cell.vcpus)):
            yield f"cell {cell.id} has vCPUs or names no node, and node {cell.node} has memory only"
    if memory.cell:
        asked = [(set(cell.vcpus), cell.size // 1024) for cell in memory.cell]
        if asked != [(set(cell.vcpus), cell.memory_kib) for cell in plan.cells]:
            yield "the cells are not those that were asked for"
        elif any(
            wanted.node is not None and wanted.node != cell.node
            for wanted, cell in zip(memory.cell, plan.cells, strict=True)
        ):
            yield "a cell is not on the node that was asked for"
    elif memory.cells is not None:
        if len(plan.cells) != memory.cells:
            yield f"{len(plan.cells)} cells, expected {memory.cells}"
        if len({(len(cell.vcpus), cell.memory_kib) for cell in plan.cells}) != 1:
            yield "the cells are not alike"
    else:
        yield from _made_cells(plan)


def _made_cells(plan: Plan) -> Iterator[str]:
    sizes = [len(cell.vcpus) for cell in plan.cells]
    if 0 in sizes or sizes != sorted(sizes, reverse=True):
        yield f"the cells that were made have {sizes} vCPUs"
    if len({cell.node for cell in plan.cells}) != len(plan.cells):
        yield "two cells that were made are on one node"
    unit = plan.cells[0].page_kib if plan.cells[0].is_huge else 1024
    units = plan.spec.memory.size // 1024 // unit
    shares = [units * size // sum(sizes) for size in sizes]
    for at in range(units - sum(shares)):
        shares[at] += 1
    if [share * unit for share in shares] != [cell.memory_kib for cell in plan.cells]:
        yield "the memory is not divided as the vCPUs are"


def _added(plan: Plan, place: int | None) -> int:
    """The KiB of ordinary memory that are added to the cells of a node."""
    memory = plan.spec.memory
    here = {cell.id for cell in plan.cells if cell.node == place}
    sizes = [(int(each.cell), each.size) for each in memory.dimm]
    sizes += [(int(each.cell), each.size) for each in memory.virtio]
    return sum(size // 1024 for cell, size in sizes if cell in here)


def _beside_pages(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rule 6, of what is added to a guest on huge pages."""
    for place in {cell.node for cell in plan.cells if cell.is_huge}:
        room, added = capacity.ordinary_mib(place), _added(plan, place)
        if room is not None and added > room * 1024:
            yield f"node {place}: {added} KiB are added, has room for {room} MiB"


def _memory(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rule 6."""
    spec = capacity.spec.memory
    if sum(cell.memory_kib for cell in plan.cells) * 1024 != spec.size:
        yield "the cells have not the memory that was asked for"
    pages = {cell.page_kib for cell in plan.cells}
    allowed = {
        "auto": {ORDINARY, MIB_PAGE, GIB_PAGE},
        False: {ORDINARY},
    }.get(spec.hugepages) or {spec.hugepages.in_kib}  # type: ignore[union-attr]  # a size
    if len(pages) != 1 or not pages <= allowed:
        yield f"pages of {sorted(pages)} KiB, expected one of {sorted(allowed)}"
    for place in {cell.node for cell in plan.cells}:
        here = [cell for cell in plan.cells if cell.node == place]
        asked = sum(cell.memory_kib for cell in here)
        if any(cell.memory_kib % cell.page_kib for cell in here):
            yield f"node {place}: a cell is not made of whole pages"
        (page,) = {cell.page_kib for cell in here}
        if page == ORDINARY:
            asked += _added(plan, place)
            room = capacity.ordinary_mib(place)
            if room is not None and asked > room * 1024:
                yield f"node {place}: {asked} KiB, has room for {room} MiB"
            continue
        have = capacity.free_pages.get((place, page), 0)
        short = max(0, asked // page - have)
        could = capacity.allocatable(place, page) if spec.allocate else 0
        if short > could:
            yield f"node {place}: {asked // page} pages of {page} KiB, {have} free, {could} more"
        allocated = sum(cell.allocate for cell in here)
        if allocated != short:
            yield f"node {place}: {allocated} pages to allocate, expected {short}"


def _floating(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rule 7."""
    own = own_cpus(plan) | frozenset(plan.idle)
    for place, (cores, vcpus) in _on_nodes(capacity, plan).items():
        if not vcpus:
            continue
        pool = (capacity.pool & capacity.cpus[place]) - own
        left = pool_left(capacity, plan.topology.threads, place, cores)
        if left < 1:
            yield f"node {place}: nothing is left for {vcpus} shared vCPUs"
        ratio = capacity.spec.cpu.ratio
        if ratio is not None and vcpus + capacity.load(place) > ratio * left:
            yield f"node {place}: more than {ratio} vCPUs on each CPU"
        here = {vcpu for cell in plan.cells if cell.node == place for vcpu in cell.vcpus}
        for vcpu in sorted(here - set(plan.dedicated)):
            if frozenset(plan.vcpus[vcpu].cpus) != pool:
                found = plan.vcpus[vcpu].cpus
                yield f"vCPU {vcpu} floats over {found}, expected {sorted(pool)}"


def _on_nodes(capacity: Capacity, plan: Plan) -> dict[Place, tuple[int, int]]:
    """For each node the dedicated guest cores and the shared vCPUs on it."""
    found = {}
    for place in capacity.cpus:
        here = {vcpu for cell in plan.cells if cell.node == place for vcpu in cell.vcpus}
        own = len(here & set(plan.dedicated))
        found[place] = own // plan.topology.threads, len(here) - own
    return found


def _helpers(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rule 9, and where QEMU's other threads may be."""
    own = own_cpus(plan) | frozenset(plan.idle)
    for name, cpus in (
        ("emulator", plan.emulator),
        ("vhost", plan.vhost),
        *((f"iothread {pin.id}", pin.cpus) for pin in plan.iothreads),
    ):
        if not cpus:
            yield f"{name}: no CPU"
        if not frozenset(cpus) <= capacity.online - capacity.held - own:
            yield f"{name}: {cpus} are not all the host's, or are the VM's own vCPUs'"
        if (
            capacity.spec.cpu.placement == "dedicated"
            and not frozenset(cpus) <= capacity.housekeeping
        ):
            yield f"{name}: {cpus} are not housekeeping CPUs"
    served = {number for number in plan.disk_iothreads if number is not None}
    if len(plan.disk_iothreads) != len(plan.spec.disk):
        yield "not every disk has its iothread told"
    if not served <= {pin.id for pin in plan.iothreads}:
        yield f"disks are served by iothreads {sorted(served)}, which are not all there"


def _devices(capacity: Capacity, plan: Plan) -> Iterator[str]:
    """Rule 8, and the buses."""
    nodes = {cell.node for cell in plan.cells}
    known = {device.address: device.node for device in capacity.host.pci or ()}
    for missed in set(capacity.device_nodes("required")) - nodes:
        yield f"a device on node {missed} is required to be local"
    if [place.address for place in plan.pci] != [device.address for device in plan.spec.pci]:
        yield "not every device has a place"
        return
    for stands in plan.pci:
        node = known[stands.address]
        if stands.node != node:
            yield f"{stands.address} is on node {node}, not {stands.node}"
        local = [cell.id for cell in plan.cells if node is not None and cell.node == node]
        if (stands.cell not in local) if local else (stands.cell is not None):
            yield f"{stands.address}: cell {stands.cell}, expected one of {local}"


def score(capacity: Capacity, plan: Plan) -> dict[str, int]:
    """The score as the objective's text says, from the plan's pins."""
    if capacity.given is None and dedicated_vcpus(capacity):
        chosen = frozenset(plan.housekeeping) - capacity.kept_before
        capacity = evolve(capacity, reserves=chosen)
    spec, own, placed = capacity.spec, own_cpus(plan), _on_cores(capacity, plan)
    cores = {core for each, _ in placed for core in each}
    on_core = Counter(core for each, _ in placed for core in each)
    used = {cell.node for cell in plan.cells}
    left = [core for core in capacity.whole if core not in cores]
    page = plan.cells[0].page_kib
    loads = [
        (vcpus, capacity.load(place), pool_left(capacity, plan.topology.threads, place, count))
        for place, (count, vcpus) in _on_nodes(capacity, plan).items()
        if vcpus
    ]
    has_cells = bool(spec.memory.cell) or spec.memory.cells is not None
    made = not has_cells and spec.cpu.placement != "mixed"
    sums = Counter[str]()
    for place, here in capacity.cpus.items():
        if own & here:
            guests = {core: number for core, number in on_core.items() if core & here}
            sums.update(judged_cpus(capacity, place, own & here, guests))
    if not own:
        left = []
    return {
        **dict.fromkeys(PARTS, 0),
        **sums,
        "narrow": int(bool(own) and len(capacity.housekeeping) < 2),
        "beside_host": int(any(core & capacity.housekeeping for core in cores)),
        "crowding": max((-(-vcpus // pool) for vcpus, _, pool in loads), default=0),
        "cohabiting": len(plan.cells) - len(used),
        "nodes": len(used),
        "distance": sum(
            capacity.distance(place, other) for place in used for other in used if place != other
        ),
        "remote_devices": sum(node not in used for node in capacity.device_nodes("preferred")),
        "small_pages": SMALL[page] if spec.memory.hugepages == "auto" else 0,
        "allocated": sum(cell.allocate for cell in plan.cells),
        "unevenness": sum(len(cell.vcpus) ** 2 for cell in plan.cells) if made else 0,
        "fast_reserves": sum(fast(capacity, cpu) for cpu in capacity.reserves),
        "load": sum(ceil((vcpus + theirs) * 1000 / pool) for vcpus, theirs, pool in loads),
        "node_blocks": -sum(
            sum(core <= cpus for core in left) ** 2 for cpus in capacity.cpus.values()
        ),
        "l3_blocks": -sum(
            count**2 for count in Counter(capacity.l3[min(core)] for core in left).values()
        ),
    }


def _score(capacity: Capacity, plan: Plan) -> Iterator[str]:
    expected = score(capacity, plan)
    numbers = dict(plan.score)
    if list(numbers) != list(ORDER):
        yield f"the score has {list(numbers)}, expected {list(ORDER)}"
    for name in expected:
        if numbers.get(name) != expected[name]:
            yield f"score {name}: {numbers.get(name)}, expected {expected[name]}"
