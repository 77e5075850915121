"""The place that a VM has by its own pins, and whether it may stay there.

A place stays that is allowed by the rules of ``kvmhooks.placement.search.objective`` and whose
score is not worse than that of the place that was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from attrs import evolve, field, frozen

from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding
from kvmhooks.machine.target import Target
from kvmhooks.machine.topology import Topology
from kvmhooks.placement.cells import placed_of
from kvmhooks.placement.device_nodes import affinity_of
from kvmhooks.placement.emulator import emulator_cpus
from kvmhooks.placement.model import ORDINARY_PAGE_KIB, Cell, IothreadPin, Plan, VcpuPin
from kvmhooks.placement.plan import plan, terms_of, ways_for
from kvmhooks.placement.request import MIB, are_threads_told
from kvmhooks.placement.search.capacity import LEAST_KEPT, Capacity, NodeCapacity, measure
from kvmhooks.placement.search.choose import FEW_CPUS
from kvmhooks.placement.search.evaluate import better, score
from kvmhooks.placement.search.packing import ANY_CPU, packer_on
from kvmhooks.placement.search.search import Effort
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union


@frozen(kw_only=True)
class OwnPlace:
    """The place that a domain says itself."""

    vcpus: Mapping[int, CpuSet]
    """The CPUs of each vCPU."""
    cells: tuple[CpuSet, ...]
    """The vCPUs of each guest cell; one with all of them for a guest without cells."""
    nodes: tuple[CpuSet | None, ...]
    """The host nodes that the memory of each cell is bound to; None where it is not bound."""
    emulator: CpuSet = CpuSet()
    iothreads: Mapping[int, CpuSet] = field(factory=dict)
    is_bound: bool = False
    """It stays wherever it may be: it has shares of the L3 caches that it is on, or its ``vm.toml``
    may have said more of its place than a domain can (``memory.nodes``, ``cpu.kind``)."""


def place_or_stay(
    spec: VmSpec, own: OwnPlace, inventory: Inventory, *, target: Target | None = None
) -> Plan:
    """Return the plan with the VM where it is, or in a better place. Raises ``PlanError``.

    Where the administrator keeps no CPUs for the host, its place is judged with those that suit it
    best: they are not taken from a VM that has them already if it would be worse off without.
    """
    found = plan(spec, inventory, target=target)
    others = inventory.others_of(found.uuid)
    known = measure(inventory.host, others, inventory.kept_beside(others))
    for current in _readings(found, own, known):
        if own.is_bound or (
            not better(found.score, current.score) and _is_roomy(current, found.score["crowding"])
        ):
            return current
    return found


def _readings(found: Plan, own: OwnPlace, known: Capacity) -> Iterator[Plan]:
    """Yield the plans with the VM's own place that are allowed, each with its score.

    A guest whose threads are open may have as many as were found, or one.
    """
    cells = _cells(found, own, known)
    if cells is None:
        return
    mine = union(own.vcpus[vcpu] for vcpu in found.dedicated)
    current = evolve(
        found,
        vcpus=tuple(VcpuPin(pin.vcpu, own.vcpus[pin.vcpu]) for pin in found.vcpus),
        cells=cells,
        distances=found.distances if len(cells) == len(found.cells) else (),
        exclusive=mine if found.exclusive else CpuSet(),
    )
    readings = [current]
    if not are_threads_told(found.spec) and found.topology.threads > 1:
        readings.append(evolve(current, topology=Topology(sockets=len(found.vcpus))))
    for reading in readings:
        if placed_of(reading, known) is None or not mine <= known.online:
            continue
        capacity = _with_reserves(reading, known)
        if _is_allowed(reading, capacity):
            yield _there(reading, own, capacity, capacity.housekeeping - known.housekeeping)


def _with_reserves(current: Plan, known: Capacity) -> Capacity:
    """Return the host with the reserves that give a place its best score, node by node."""
    if not known.is_open or not current.dedicated:
        return known.keeping(known.housekeeping)
    mine = current.dedicated_cpus
    own = Holding(name=current.name, uuid=current.uuid, dedicated=mine)
    left = measure(known.host, [*known.holdings, own], known.housekeeping - mine, is_open=True)
    packer = packer_on(left, ANY_CPU._replace(usable=left.online.mask), 0)

    def best_of(kept: CpuSet, reserves: Iterable[int]) -> CpuSet:
        options = [kept | CpuSet.from_mask(reserve) for reserve in reserves]
        return min(options, key=lambda each: tuple(_score(current, known, each).values()))

    kept = known.housekeeping
    for node in left.numa_nodes:
        if not mine.isdisjoint(node.cpus):
            kept = best_of(kept, (0, *packer.reserves(node)))
    if len(kept) < LEAST_KEPT:
        kept = best_of(
            kept, (0, *(reserve for node in left.numa_nodes for reserve in packer.reserves(node)))
        )
    if not kept and len(known.online) <= FEW_CPUS:
        alone = left.online - left.held - left.isolated
        kept = best_of(kept, (0, *(1 << cpu for cpu in alone)))
    return known.keeping(kept)


def _score(current: Plan, known: Capacity, kept: CpuSet) -> dict[str, int]:
    """Return the score of a place while these CPUs are kept."""
    capacity = known.keeping(kept)
    placed = placed_of(current, capacity)
    assert placed is not None  # that was asked before
    affinity = affinity_of(current.spec, capacity)
    reserves = kept - known.housekeeping
    return score(current.spec, placed, capacity, affinity, reserves=reserves)


def _there(current: Plan, own: OwnPlace, capacity: Capacity, reserves: CpuSet) -> Plan:
    """Return the plan with QEMU's other threads, and the score."""
    placed = placed_of(current, capacity)
    assert placed is not None  # that was asked before
    homes = {cell.node for cell in current.cells}
    numa_nodes = [node for node in capacity.numa_nodes if node.node in homes]
    mine = current.dedicated_cpus

    def others(asked: CpuSet, chosen: CpuSet) -> CpuSet:
        used = union(node.cpus for node in numa_nodes)
        return _others(asked, chosen, own=mine, used=used, capacity=capacity)

    chosen = emulator_cpus(current.spec, capacity, own.vcpus, numa_nodes, reserves)
    emulator = others(own.emulator, chosen)
    affinity = affinity_of(current.spec, capacity)
    return evolve(
        current,
        emulator=emulator,
        vhost=emulator,
        iothreads=tuple(
            IothreadPin(each.id, others(own.iothreads.get(each.id, CpuSet()), emulator))
            for each in current.iothreads
        ),
        housekeeping=capacity.housekeeping or current.housekeeping,
        score=score(current.spec, placed, capacity, affinity, reserves=reserves),
    )


def _cells(found: Plan, own: OwnPlace, capacity: Capacity) -> tuple[Cell, ...] | None:
    """Return the guest's cells where they are; None for one on no node, or on several."""
    cells = found.cells
    if len(own.cells) != len(cells):
        if len(own.cells) != 1:
            return None
        memory_kib = sum(cell.memory_kib for cell in cells)
        cells = (evolve(cells[0], vcpus=own.cells[0], memory_kib=memory_kib),)
    placed = []
    for cell, bound in zip(cells, own.nodes, strict=True):
        cpus = union(own.vcpus[vcpu] for vcpu in cell.vcpus)
        here = [
            node
            for node in capacity.numa_nodes
            if (bound is None or bound == CpuSet(() if node.node is None else (node.node,)))
            and cpus <= node.cpus
        ]
        if len(here) != 1 or (bound is None and not cpus):
            return None
        placed.append(evolve(cell, node=here[0].node))
    return tuple(placed)


def _others(
    asked: CpuSet, chosen: CpuSet, *, own: CpuSet, used: CpuSet, capacity: Capacity
) -> CpuSet:
    """Return the CPUs of QEMU's other threads: those that were asked for, if they may be there.

    They are as near as those that would be chosen, or nearer, and nobody's own.
    """
    allowed = capacity.online - capacity.held - own
    near = used | union(
        node.cpus for node in capacity.numa_nodes if not node.cpus.isdisjoint(chosen)
    )
    balanced = asked.isdisjoint(capacity.isolated) or not chosen.isdisjoint(capacity.isolated)
    return asked if asked and asked <= allowed & near and balanced else chosen


def _is_allowed(current: Plan, capacity: Capacity) -> bool:
    """Return whether the rules allow the place; ``stay`` has seen to each cell's node."""
    spec = current.spec
    terms = terms_of(spec, capacity, ways_for(spec, capacity), effort=Effort())
    usable = terms.usable & capacity.free
    pins = {pin.vcpu: pin.cpus for pin in current.vcpus}
    own = current.dedicated_cpus
    if not own <= usable or len(own) != len(current.dedicated):
        return False
    if any(len(pins[vcpu]) != 1 for vcpu in current.dedicated):
        return False
    pool = capacity.online - capacity.isolated - capacity.held - own
    if not all(pins[vcpu] and pins[vcpu] <= pool for vcpu in pins if vcpu not in current.dedicated):
        return False
    return _are_cores_right(current, capacity, usable) and _has_room(current, capacity)


def _are_cores_right(current: Plan, capacity: Capacity, usable: CpuSet) -> bool:
    """Return whether each guest core is on one core, and alone there where it has to be."""
    spec, threads = current.spec, current.topology.threads
    pins = {pin.vcpu: pin.cpus for pin in current.vcpus}
    guest_cores: Counter[CpuSet] = Counter()
    for first in sorted({vcpu - vcpu % threads for vcpu in current.dedicated}):
        cpus = union(pins[vcpu] for vcpu in range(first, first + threads))
        core = capacity.host.core_of(cpus.first()) & capacity.online
        if not cpus <= core:
            return False
        guest_cores[core] += 1
    if max(guest_cores.values(), default=0) > 1 and not are_threads_told(spec):
        return False
    return spec.cpu.smt == "share" or all(
        count == 1 and core <= usable and (spec.cpu.smt == "isolate" or len(core) == threads)
        for core, count in guest_cores.items()
    )


def _has_room(current: Plan, capacity: Capacity) -> bool:
    """Return whether each node has room for the memory of the cells there."""
    page_kib = current.cells[0].page_kib
    asked: Counter[int | None] = Counter()
    more: Counter[int | None] = Counter()
    for cell in current.cells:
        asked[cell.node] += cell.memory_kib
    for at, kib in current.spec.memory.added_kib().items():
        more[current.cells[min(at, len(current.cells) - 1)].node] += kib
    if page_kib == ORDINARY_PAGE_KIB:
        asked, more = asked + more, Counter()
    there = {node.node: node for node in capacity.numa_nodes}
    return all(
        room is None or kib <= room * unit
        for wanted, size_kib, unit in (
            (asked, page_kib, max(page_kib, MIB)),
            (more, ORDINARY_PAGE_KIB, MIB),
        )
        for node, kib in wanted.items()
        for room in [_room(there[node], size_kib, current)]
    )


def _room(node: NodeCapacity, page_kib: int, current: Plan) -> int | None:
    if page_kib > ORDINARY_PAGE_KIB:
        return node.room(page_kib, allocate=current.spec.memory.allocate)
    return node.ordinary_mib


def _is_roomy(current: Plan, crowding: int) -> bool:
    """Return whether shared vCPUs have as much room as in the place that was found.

    The score counts them on their node's whole pool, which the pins may be a part of.
    """
    shared = [pin.cpus for pin in current.vcpus if pin.vcpu not in current.dedicated]
    return all(
        sum(other <= cpus for other in shared) <= max(crowding, 1) * len(cpus) for cpus in shared
    )
