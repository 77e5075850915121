"""Why a VM does not fit: what binds, with the numbers, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil, floor

from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.placement.choose import Choice, Terms
from kvmhooks.placement.ground import Ground, Site
from kvmhooks.placement.packing import Packer, Rules
from kvmhooks.placement.reasons import named
from kvmhooks.placement.request import CellAsk, Request
from kvmhooks.placement.seats import Seats
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import ByteSize
from kvmhooks.wording import counted

Relaxed = Callable[[VmSpec], Choice | None]


def has_helpers(spec: VmSpec, ground: Ground) -> bool:
    """Whether there are CPUs for QEMU's other threads."""
    if spec.cpu.placement == "shared":
        return any(site.pool for site in ground.sites)
    return bool(ground.housekeeping)


def undecided(spec: VmSpec) -> PlanError:
    """Say that not everything was tried."""
    return PlanError(
        "memory.cell" if spec.memory.cell else "memory.cells",
        f"{len(spec.memory.cell) or spec.memory.cells or 'no'} cells, of which too many ways to "
        "share nodes are possible: none of those tried fits, and not all were tried",
        "fewer cells, or a node for some of them",
    )


def explain(spec: VmSpec, ground: Ground, terms: Terms, *, relaxed: Relaxed) -> PlanError:
    """Name what binds and what would fit."""
    if not has_helpers(spec, ground):
        return PlanError(
            "cpu.placement",
            f"{spec.cpu.placement}, but every online CPU is isolated by the kernel or another "
            "VM's own",
            "CPUs to share with the host: for shared vCPUs, or for QEMU's other threads",
        )
    request = terms.requests[-1]
    seats = Seats(
        ground=ground,
        request=request,
        packer=Packer(
            Rules(
                threads=request.threads,
                smt=spec.cpu.smt,
                usable=terms.usable.mask,
                may_be_beside_host=True,
                is_slow_counted=False,
            ),
            request.guest_cores,
        ),
        crowding=spec.cpu.vcpus,
    )
    at, found, expected = next(_bindings(seats, terms))
    help_ = next(_relaxations(spec, relaxed), "")
    return PlanError(at, found, f"{expected}{help_}")


def _bindings(seats: Seats, terms: Terms) -> Iterator[tuple[str, str, str]]:
    """What binds, the plainest first."""
    yield from _too_few_cpus(seats)
    yield from _too_full_pool(seats)
    yield from _too_little_memory(seats)
    yield from _no_node_for_a_cell(seats)
    yield from _no_room_at_the_devices(seats, terms)
    wanted = counted(len(seats.request.cells), "cell") if seats.request.cells else "the VM"
    yield (
        "memory.cells" if not seats.request.spec.memory.cell else "memory.cell",
        f"{wanted}, each of which fits a node",
        f"room for all at once: free are {_free(seats)}, {_memory(seats)}",
    )


def _unit(request: Request) -> str:
    """What a guest core takes."""
    if request.spec.cpu.smt != "share":
        return "whole core"
    return "CPU" if request.threads == 1 else f"core with {request.threads} free threads"


def _plural(count: int, request: Request) -> str:
    unit = _unit(request)
    head, _, tail = unit.partition(" with ")
    return counted(count, head) + (f" with {tail}" if tail else "")


def _cores(seats: Seats, site: Site) -> int:
    return len(seats.packer.costs(site)) - 1


def _free(seats: Seats) -> str:
    request = seats.request
    if not request.dedicated:
        return _each(seats, lambda site: counted(len(site.pool), "CPU"))
    return _each(seats, lambda site: _plural(_cores(seats, site), request))


def _memory(seats: Seats) -> str:
    unit = ByteSize.kib(seats.request.unit_kib)

    def of(site: Site) -> str:
        room = seats.room(site)
        if room is None:
            return "memory not known"
        if seats.request.unit_kib == 1024:
            return f"{room}MiB"
        return f"{room} pages of {unit}"

    return _each(seats, of, with_cpus=False)


def _each(seats: Seats, of: Callable[[Site], str], *, with_cpus: bool = True) -> str:
    nodes = seats.request.spec.memory.nodes
    return ", ".join(
        f"{of(site)} on {site}"
        for site in seats.ground.sites
        if (site.cpus or not with_cpus) and (nodes is None or site.node in nodes)
    )


def _kept(seats: Seats) -> str:
    ground = seats.ground
    taken = f", {ground.held} are other VMs' own" if ground.held else ""
    return f"(CPUs {ground.housekeeping} are kept for the host{taken})"


def _sites(seats: Seats) -> list[Site]:
    nodes = seats.request.spec.memory.nodes
    return [site for site in seats.ground.sites if nodes is None or site.node in nodes]


def _too_few_cpus(seats: Seats) -> Iterator[tuple[str, str, str]]:
    request = seats.request
    if not request.dedicated:
        return
    wanted = len(request.dedicated) // request.threads
    there = sum(_cores(seats, site) for site in _sites(seats) if site.cpus)
    if wanted > there:
        at = "cpu.vcpus" if request.spec.cpu.placement == "dedicated" else "cpu.dedicated"
        yield (
            at,
            f"{len(request.dedicated)} dedicated, which take {_plural(wanted, request)}",
            f"at most {there * request.threads}: free are {_free(seats)} {_kept(seats)}",
        )


def _too_full_pool(seats: Seats) -> Iterator[tuple[str, str, str]]:
    request = seats.request
    ratio = request.spec.cpu.ratio
    floating = request.spec.cpu.vcpus - len(request.dedicated)
    if not floating or ratio is None:
        return
    left = {site: max(floor(ratio * len(site.pool) - site.load), 0) for site in _sites(seats)}
    if floating > sum(left.values()):
        have = ", ".join(
            f"{room} on {site} ({len(site.pool)} CPUs, {ceil(site.load)} vCPUs)"
            for site, room in left.items()
            if site.cpus
        )
        yield "cpu.ratio", f"{ratio}, with {floating} shared vCPUs", f"room for them: {have}"


def _too_little_memory(seats: Seats) -> Iterator[tuple[str, str, str]]:
    request = seats.request
    rooms = [seats.room(site) for site in _sites(seats)]
    if None in rooms or request.units <= sum(room or 0 for room in rooms):
        return
    yield _memory_binds(seats, "")


def _memory_binds(seats: Seats, each: str) -> tuple[str, str, str]:
    request = seats.request
    have = _memory(seats)
    if request.spec.memory.hugepages:
        size = ByteSize.kib(request.unit_kib)
        could = " or could be allocated" if request.spec.memory.allocate else ""
        found = f"{request.units} pages of {size}{each}"
        return "memory.hugepages", found, f"no more than are free{could}: {have}"
    return "memory.size", f"{request.spec.memory.size}{each}", f"no more than there is: {have}"


def _no_node_for_a_cell(seats: Seats) -> Iterator[tuple[str, str, str]]:
    """A cell that no node takes, be it alone."""
    request = seats.request
    if not request.cells:
        sites = [site for site in _sites(seats) if site.cpus]
        if sum(seats.most(site) for site in sites) >= request.guest_cores:
            return
        wanted = _plural(request.guest_cores, request) if request.dedicated else "its vCPUs"
        yield (
            "memory.size",
            f"{request.spec.memory.size}, divided among nodes as the vCPUs are: it needs {wanted}",
            f"nodes with both free: {_free(seats)}; {_memory(seats)}",
        )
        return
    for index, cell in enumerate(request.cells):
        if any(cost is not None for cost in seats.costs(cell)):
            continue
        yield _cell_binds(seats, index, cell)


def _cell_binds(seats: Seats, index: int, cell: CellAsk) -> tuple[str, str, str]:
    request = seats.request
    at = f"memory.cell[{index}]" if request.spec.memory.cell else "memory.cells"
    where = "one node" if cell.node is None else f"node {cell.node}"
    sites = [site for site in _sites(seats) if cell.node in {None, site.node}]
    if cell.cores and all(_cores(seats, site) < cell.cores for site in sites if site.cpus):
        needs = f"needs {_plural(cell.cores, request)} on {where}"
        return at, f"cell {index}, which {needs}", f"a node with as many: {_free(seats)}"
    rooms = [seats.room(site) for site in sites]
    if all(room is not None and room < cell.room for room in rooms):
        share = ByteSize.kib(cell.units * request.unit_kib)
        return _memory_binds(seats, f", of which cell {index} needs {share} on {where}")
    return (
        at,
        f"cell {index}: {_wish(cell, request)} on {where}",
        f"a node with all of it: {_free(seats)}; {_memory(seats)}",
    )


def _wish(cell: CellAsk, request: Request) -> str:
    said = []
    if cell.cores:
        said.append(_plural(cell.cores, request))
    if cell.floating:
        said.append(f"a pool for {counted(cell.floating, 'vCPU')}")
    said.append(str(ByteSize.kib(cell.units * request.unit_kib)))
    return " and ".join(said)


def _no_room_at_the_devices(seats: Seats, terms: Terms) -> Iterator[tuple[str, str, str]]:
    if not terms.near.required:
        return
    nodes = [site.node for site in seats.ground.sites if site.index in terms.near.required]
    where = named([node for node in nodes if node is not None])
    which = next(
        index for index, one in enumerate(seats.request.spec.pci) if one.locality == "required"
    )
    yield (
        f"pci[{which}].locality",
        f'"required", which is {where}',
        f"room there: free are {_free(seats)}; {_memory(seats)}",
    )


def _relaxations(spec: VmSpec, relaxed: Relaxed) -> Iterator[str]:
    """What would fit with one thing asked for less."""
    for words, other in _weaker(spec):
        choice = relaxed(other)
        if choice is not None:
            nodes = sorted({site.node for site in choice.seating.sites if site.node is not None})
            yield f"; {words} would fit on {named(nodes)}"


def _weaker(spec: VmSpec) -> Iterator[tuple[str, VmSpec]]:
    """The same VM with one thing asked for less, the least loss first."""
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
