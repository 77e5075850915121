"""The reasons why a VM does not fit: what binds, with the numbers, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil, floor

from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.placement.cells import cells_of
from kvmhooks.placement.model import ORDINARY_PAGE_KIB
from kvmhooks.placement.reasons import named
from kvmhooks.placement.request import CellAsk, Request, are_threads_told
from kvmhooks.placement.search.capacity import Capacity, NodeCapacity
from kvmhooks.placement.search.choose import FEW_CPUS, Choice, Terms
from kvmhooks.placement.search.host_cpus import choose_housekeeping
from kvmhooks.placement.search.node_costs import NodeCosts
from kvmhooks.placement.search.packing import Packer, Rules
from kvmhooks.spec.memory import Memory
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import ByteSize, CpuSet
from kvmhooks.wording import counted

Relaxed = Callable[[VmSpec], Choice | None]


def has_helpers(spec: VmSpec, capacity: Capacity) -> bool:
    """Return whether there are CPUs for QEMU's other threads."""
    if spec.cpu.placement == "shared":
        return any(node.pool for node in capacity.numa_nodes)
    if capacity.is_open:
        return bool(capacity.online - capacity.held - capacity.isolated)
    return bool(capacity.housekeeping)


def undecided(spec: VmSpec) -> PlanError:
    """Say that not everything was tried."""
    return PlanError(
        "memory.cell" if spec.memory.cell else "memory.cells",
        f"{len(spec.memory.cell) or spec.memory.cells or 'no'} cells, of which too many ways to "
        "share nodes are possible: none of those tried fits, and not all were tried",
        "fewer cells, or a node for some of them",
    )


def explain(spec: VmSpec, capacity: Capacity, terms: Terms, *, relaxed: Relaxed) -> PlanError:
    """Name what binds and what would fit."""
    if not has_helpers(spec, capacity):
        return PlanError(
            "cpu.placement",
            f"{spec.cpu.placement}, but every online CPU is isolated by the kernel or another "
            "VM's own",
            "CPUs to share with the host: for shared vCPUs, or for QEMU's other threads",
        )
    if capacity.is_open:
        kept = capacity.housekeeping or choose_housekeeping(capacity.host, capacity.held)
        if len(capacity.online) <= FEW_CPUS and not capacity.housekeeping:
            kept = CpuSet((kept.first(),))
        capacity = capacity.keeping(kept)
    node_costs = max(
        (
            _costs_of(request, capacity, terms)
            for request in terms.requests
            if request.page_kib == terms.requests[-1].page_kib
        ),
        key=lambda costs: (
            sum(map(partial(_cores, costs), _with_cpus(costs))) * costs.request.threads
        ),
    )
    at, found, expected = next(_bindings(node_costs, terms))
    help_ = next(_relaxations(spec, relaxed), "")
    return PlanError(at, found, f"{expected}{help_}")


def _costs_of(request: Request, capacity: Capacity, terms: Terms) -> NodeCosts:
    """Return the nodes for one number of threads; whatever is free at all is room."""
    rules = Rules(
        threads=request.threads,
        smt=request.spec.cpu.smt,
        usable=terms.usable.mask,
        may_be_beside_host=True,
        is_slow_counted=False,
        is_alone=not are_threads_told(request.spec),
        isolation="",
        is_open=False,
    )
    return NodeCosts(
        capacity=capacity,
        request=request,
        packer=Packer(rules, max(capacity.threads * request.guest_cores, len(capacity.online))),
        crowding=request.spec.cpu.vcpus,
    )


def _with_cpus(node_costs: NodeCosts) -> list[NodeCapacity]:
    return [node for node in _numa_nodes(node_costs) if node.cpus]


def _bindings(node_costs: NodeCosts, terms: Terms) -> Iterator[tuple[str, str, str]]:
    """Yield the limits that bind, the plainest first."""
    yield from _too_few_cpus(node_costs)
    yield from _too_full_pool(node_costs)
    yield from _too_little_memory(node_costs)
    yield from _no_node_for_a_cell(node_costs)
    yield from _no_room_at_the_devices(node_costs, terms)
    wanted = (
        counted(len(node_costs.request.cells), "cell") if node_costs.request.cells else "the VM"
    )
    yield (
        "memory.cells" if not node_costs.request.spec.memory.cell else "memory.cell",
        f"{wanted}, each of which fits a node",
        f"room for all at once: free are {_free(node_costs)}, {_memory(node_costs)}",
    )


def _unit(request: Request) -> str:
    """Return the words for what a guest core takes."""
    if request.spec.cpu.smt != "share":
        return "whole core"
    if request.threads == 1 and not are_threads_told(request.spec):
        return "core"
    return "CPU" if request.threads == 1 else f"core with {request.threads} free threads"


def _plural(count: int, request: Request) -> str:
    unit = _unit(request)
    head, _, tail = unit.partition(" with ")
    return counted(count, head) + (f" with {tail}" if tail else "")


def _cores(node_costs: NodeCosts, node: NodeCapacity) -> int:
    return len(node_costs.packer.costs(node)) - 1


def _free(node_costs: NodeCosts) -> str:
    request = node_costs.request
    if not request.dedicated:
        return _each(node_costs, lambda node: counted(len(node.pool), "CPU"))
    return _each(node_costs, lambda node: _plural(_cores(node_costs, node), request))


def _memory(node_costs: NodeCosts) -> str:
    unit = ByteSize.kib(node_costs.request.unit_kib)

    def of(node: NodeCapacity) -> str:
        room = node_costs.room(node)
        if room is None:
            return "memory not known"
        if node_costs.request.unit_kib == 1024:
            return f"{room}MiB"
        return f"{room} pages of {unit}"

    return _each(node_costs, of, with_cpus=False)


def _each(
    node_costs: NodeCosts, of: Callable[[NodeCapacity], str], *, with_cpus: bool = True
) -> str:
    nodes = node_costs.request.spec.memory.nodes
    return ", ".join(
        f"{of(node)} on {node}"
        for node in node_costs.capacity.numa_nodes
        if (node.cpus or not with_cpus) and (nodes is None or node.node in nodes)
    )


def _kept(node_costs: NodeCosts) -> str:
    capacity = node_costs.capacity
    taken = f", {capacity.held} are other VMs' own" if capacity.held else ""
    return f"(CPUs {capacity.housekeeping} are kept for the host{taken})"


def _numa_nodes(node_costs: NodeCosts) -> list[NodeCapacity]:
    nodes = node_costs.request.spec.memory.nodes
    return [node for node in node_costs.capacity.numa_nodes if nodes is None or node.node in nodes]


def _too_few_cpus(node_costs: NodeCosts) -> Iterator[tuple[str, str, str]]:
    request = node_costs.request
    if not request.dedicated:
        return
    wanted = len(request.dedicated) // request.threads
    there = sum(_cores(node_costs, node) for node in _numa_nodes(node_costs) if node.cpus)
    if wanted > there:
        at = "cpu.vcpus" if request.spec.cpu.placement == "dedicated" else "cpu.dedicated"
        yield (
            at,
            f"{len(request.dedicated)} dedicated, which take {_plural(wanted, request)}",
            f"at most {there * request.threads}: free are {_free(node_costs)} {_kept(node_costs)}",
        )


def _too_full_pool(node_costs: NodeCosts) -> Iterator[tuple[str, str, str]]:
    request = node_costs.request
    ratio = request.spec.cpu.ratio
    floating = request.spec.cpu.vcpus - len(request.dedicated)
    if not floating or ratio is None:
        return
    left = {
        node: max(floor(ratio * len(node.pool) - node.load), 0) for node in _numa_nodes(node_costs)
    }
    if floating > sum(left.values()):
        have = ", ".join(
            f"{room} on {node} ({len(node.pool)} CPUs, {ceil(node.load)} vCPUs)"
            for node, room in left.items()
            if node.cpus
        )
        yield "cpu.ratio", f"{ratio}, with {floating} shared vCPUs", f"room for them: {have}"


def _too_little_memory(node_costs: NodeCosts) -> Iterator[tuple[str, str, str]]:
    request = node_costs.request
    numa_nodes = _numa_nodes(node_costs)
    if not request.cells:
        numa_nodes = _with_cpus(node_costs)
    added = sum(cell.added for cell in request.cells)
    for is_added, wanted, rooms in (
        (False, _units_of(request, request.units, added), [*map(node_costs.room, numa_nodes)]),
        (True, added, [node.ordinary_mib for node in numa_nodes]),
    ):
        if None not in rooms and wanted > sum(room or 0 for room in rooms):
            yield (_added_binds if is_added else _memory_binds)(node_costs, "")


def _units_of(request: Request, units: int, added: int) -> int:
    """Return the units of a cell or of all, with the MiB that are added if its pages are such."""
    return units + added if request.page_kib == ORDINARY_PAGE_KIB else units


def _added_binds(node_costs: NodeCosts, each: str) -> tuple[str, str, str]:
    """Say that DIMMs and virtio-mem find no ordinary memory beside the guest's huge pages."""
    memory = node_costs.request.spec.memory
    have = _each(
        node_costs,
        lambda node: f"{node.ordinary_mib}MiB of ordinary memory",
        with_cpus=False,
    )
    found = f"{_added(memory)} that are added{each}"
    return "memory.dimm" if memory.dimm else "memory.virtio", found, f"no more than: {have}"


def _added(memory: Memory) -> str:
    return str(ByteSize.kib(sum(memory.added_kib().values())))


def _memory_binds(node_costs: NodeCosts, each: str) -> tuple[str, str, str]:
    request = node_costs.request
    have = _memory(node_costs)
    if request.spec.memory.hugepages:
        size = ByteSize.kib(request.unit_kib)
        could = " or could be allocated" if request.spec.memory.allocate else ""
        found = f"{request.units} pages of {size}{each}"
        return "memory.hugepages", found, f"no more than are free{could}: {have}"
    memory = request.spec.memory
    more = f" and {_added(memory)} that are added (dimm, virtio)" if memory.added_kib() else ""
    slow = [
        node.node
        for node in node_costs.capacity.numa_nodes
        if not node.cpus and node.node is not None and (node.memory_kib or 0) > 0
    ]
    named_only = f"; {named(slow)} with memory only: by memory.cell and its node" if slow else ""
    found = f"{memory.size}{more}{each}"
    return "memory.size", found, f"no more than there is: {have}{named_only}"


def _no_node_for_a_cell(node_costs: NodeCosts) -> Iterator[tuple[str, str, str]]:
    """Yield a cell that no node takes, be it alone."""
    request = node_costs.request
    if not request.cells:
        numa_nodes = [node for node in _numa_nodes(node_costs) if node.cpus]
        if sum(node_costs.most(node) for node in numa_nodes) >= request.guest_cores:
            return
        wanted = _plural(request.guest_cores, request) if request.dedicated else "its vCPUs"
        yield (
            "memory.size",
            f"{request.spec.memory.size}, divided among nodes as the vCPUs are: it needs {wanted}",
            f"nodes with both free: {_free(node_costs)}; {_memory(node_costs)}",
        )
        return
    for index, cell in enumerate(request.cells):
        if any(cost is not None for cost in node_costs.costs(cell)):
            continue
        yield _cell_binds(node_costs, index, cell)


def _cell_binds(node_costs: NodeCosts, index: int, cell: CellAsk) -> tuple[str, str, str]:
    request = node_costs.request
    at = f"memory.cell[{index}]" if request.spec.memory.cell else "memory.cells"
    where = "one node" if cell.node is None else f"node {cell.node}"
    numa_nodes = [node for node in _numa_nodes(node_costs) if cell.node in {None, node.node}]
    if cell.cores and all(
        _cores(node_costs, node) < cell.cores for node in numa_nodes if node.cpus
    ):
        needs = f"needs {_plural(cell.cores, request)} on {where}"
        return at, f"cell {index}, which {needs}", f"a node with as many: {_free(node_costs)}"
    rooms = [node_costs.room(node) for node in numa_nodes]
    wanted = _units_of(request, cell.room, cell.added)
    if all(room is not None and room < wanted for room in rooms):
        units = _units_of(request, cell.units, cell.added)
        share = ByteSize.kib(units * request.unit_kib)
        return _memory_binds(node_costs, f", of which cell {index} needs {share} on {where}")
    ordinary = [node.ordinary_mib for node in numa_nodes]
    if cell.added and all(room is not None and room < cell.added for room in ordinary):
        share = ByteSize.kib(cell.added * 1024)
        return _added_binds(node_costs, f", of which cell {index} needs {share} on {where}")
    return (
        at,
        f"cell {index}: {_needs_of(cell, request)} on {where}",
        f"a node with all of it: {_free(node_costs)}; {_memory(node_costs)}",
    )


def _needs_of(cell: CellAsk, request: Request) -> str:
    words = []
    if cell.cores:
        words.append(_plural(cell.cores, request))
    if cell.floating:
        words.append(f"a pool for {counted(cell.floating, 'vCPU')}")
    words.append(str(ByteSize.kib(cell.units * request.unit_kib)))
    if cell.added:
        words.append(f"{ByteSize.kib(cell.added * 1024)} that are added")
    return " and ".join(words)


def _no_room_at_the_devices(node_costs: NodeCosts, terms: Terms) -> Iterator[tuple[str, str, str]]:
    if not terms.affinity.required:
        return
    nodes = [
        node.node
        for node in node_costs.capacity.numa_nodes
        if node.index in terms.affinity.required
    ]
    where = named([node for node in nodes if node is not None])
    which = next(
        index
        for index, device in enumerate(node_costs.request.spec.pci)
        if device.locality == "required"
    )
    yield (
        f"pci[{which}].locality",
        f'"required", which is {where}',
        f"room there: free are {_free(node_costs)}; {_memory(node_costs)}",
    )


def _relaxations(spec: VmSpec, relaxed: Relaxed) -> Iterator[str]:
    """Yield the changes, one thing asked for less, with which it would fit."""
    for words, other in _weaker(spec):
        choice = relaxed(other)
        if choice is not None:
            nodes = sorted(
                {node.node for node in choice.assignment.numa_nodes if node.node is not None}
            )
            yield f"; {words} would fit on {named(nodes)}{_commands(choice)}"


def _commands(choice: Choice) -> str:
    """Return the commands that make the huge pages that a choice has to allocate."""
    commands = []
    for cell in cells_of(choice):
        if cell.allocate:
            where = (
                "/sys/kernel/mm"
                if cell.node is None
                else f"/sys/devices/system/node/node{cell.node}"
            )
            pools = choice.capacity.host.memory and choice.capacity.host.memory.hugepages
            if cell.node is not None:
                pools = choice.capacity.host.node(cell.node).hugepages
            sizes = {pool.size_kib: pool.total or 0 for pool in pools or ()}
            count = sizes.get(cell.page_kib, 0) + cell.allocate
            at = f"{where}/hugepages/hugepages-{cell.page_kib}kB/nr_hugepages"
            commands.append(f"echo {count} > {at}")
    return f" (or: {'; '.join(commands)})" if commands else ""


def _weaker(spec: VmSpec) -> Iterator[tuple[str, VmSpec]]:
    """Yield the same VM with one thing asked for less, the least loss first."""
    cpu, memory, isolation = spec.cpu, spec.memory, spec.isolation
    calm = evolve(isolation, exclusive=False)
    floating = evolve(
        cpu, placement="shared", dedicated=None, smt="share", kind=None, realtime=False
    )
    pci = tuple(evolve(device, locality="preferred") for device in spec.pci)
    for is_asked, words, changes in (
        (cpu.smt != "share", "relaxing cpu.smt to share", {"cpu": evolve(cpu, smt="share")}),
        (
            any(device.locality == "required" for device in spec.pci),
            "relaxing pci.locality to preferred",
            {"pci": pci},
        ),
        (
            isolation.cache_ways is not None,
            "leaving out isolation.cache_ways",
            {"isolation": evolve(isolation, cache_ways=None)},
        ),
        (cpu.kind is not None, "leaving out cpu.kind", {"cpu": evolve(cpu, kind=None)}),
        (cpu.ratio is not None, "leaving out cpu.ratio", {"cpu": evolve(cpu, ratio=None)}),
        (
            bool(memory.added_kib()),
            "leaving out memory.dimm and memory.virtio",
            {"memory": evolve(memory, dimm=(), virtio=())},
        ),
        (
            memory.nodes is not None,
            "leaving out memory.nodes",
            {"memory": evolve(memory, nodes=None)},
        ),
        (
            memory.cells is not None or bool(memory.cell),
            "leaving the cells to the planner",
            {"memory": evolve(memory, cells=None, cell=())},
        ),
        (
            bool(memory.hugepages) and not memory.allocate,
            "setting memory.allocate",
            {"memory": evolve(memory, allocate=True)},
        ),
        (
            bool(memory.hugepages),
            "ordinary memory (memory.hugepages = false)",
            {"memory": evolve(memory, hugepages=False)},
        ),
        (cpu.placement != "shared", "shared vCPUs", {"cpu": floating, "isolation": calm}),
    ):
        if is_asked:
            yield words, evolve(spec, **changes)
