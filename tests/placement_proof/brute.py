"""Every placement there is, and the least score of them.

All ways are tried: each number of guest threads, each way to cut the VM into cells, each node for
each cell, each reserve of the host and each set of CPUs on each node. The only thing that is used
is that what the CPUs decide, but for ``narrow`` and ``beside_host``, are sums over nodes: the least
tuple of sums is the sum of the least tuples, so that a node's part may be chosen for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import accumulate, combinations, pairwise, product
from math import ceil

from attrs import evolve, frozen

from kvmhooks.placement.search.objective import ORDER
from tests.placement_proof.capacity import Capacity, Cpus, Place

Score = tuple[int, ...]
GIB_PAGE, MIB_PAGE, ORDINARY = 1 << 20, 2048, 4
SMALL = {GIB_PAGE: 0, MIB_PAGE: 1, ORDINARY: 2}
WHOLE = {"narrow", "beside_host", "crowding", "cohabiting", "nodes", "distance", "remote_devices"}
WHOLE |= {"small_pages", "unevenness", "allocated", "load"}
PARTS = [name for name in ORDER if name not in WHOLE]
"""The numbers that are sums over what is on each node."""


@frozen
class CellAsked:
    """One guest cell, before it has a node."""

    guest_cores: int
    """Of dedicated vCPUs."""
    floating: int
    """The number of its vCPUs that float."""
    units: int
    """The room that its memory needs, in pages, or in MiB where they are ordinary."""
    exact: int
    """Its memory, which is less where its share of the VM's was rounded up."""
    node: int | None = None
    """The node that it must be on."""

    @property
    def has_vcpus(self) -> bool:
        return self.guest_cores + self.floating > 0


@frozen
class Layout:
    """One way to cut the VM into cells."""

    threads: int
    page_kib: int
    cells: tuple[CellAsked, ...]
    sizes: tuple[int, ...] | None
    """The vCPUs of each cell that the planner made; None where a person made them."""


def best(capacity: Capacity) -> Score | None:
    """The least score of all placements that are allowed; None where there is none."""
    if not can_run(capacity):
        return None
    if capacity.given is not None or not dedicated_vcpus(capacity):
        return _best_of(capacity)
    found = _best_of(capacity)
    if found is not None:
        return found
    before = capacity.kept_before
    alone = capacity.online - capacity.held - capacity.isolated
    few = alone if len(capacity.online) <= 4 else ()
    some = [before] if before else [frozenset({cpu}) for cpu in few]
    narrow = (_best_of(evolve(capacity, given=kept), reserve=kept - before) for kept in some)
    return min((score for score in narrow if score is not None), default=None)


def _best_of(capacity: Capacity, reserve: Cpus = frozenset()) -> Score | None:
    spots = cache(lambda place, threads, count: _spots(capacity, place, threads, count))
    found: Score | None = None
    for layout in layouts(capacity):
        for places in _assignments(capacity, layout):
            for score in _scores(capacity, layout, places, spots, reserve):
                if found is None or score < found:
                    found = score
    return found


def can_run(capacity: Capacity) -> bool:
    """Rules 8 and 9, as far as they are the same for all placements."""
    helpers = capacity.pool if capacity.spec.cpu.placement == "shared" else capacity.housekeeping
    if capacity.given is None and dedicated_vcpus(capacity):
        helpers = capacity.kept_before | (capacity.online - capacity.held - capacity.isolated)
    return bool(helpers) and not capacity.is_promised_locality


def layouts(capacity: Capacity) -> Iterator[Layout]:
    """Every way to cut the VM into cells, with every page size and number of guest threads."""
    for threads, page in product(_thread_counts(capacity), _pages(capacity)):
        yield from _cuts(capacity, threads, page)


def _thread_counts(capacity: Capacity) -> Iterator[int]:
    cpu = capacity.spec.cpu
    others = (cpu.sockets or 1) * (cpu.dies or 1) * (cpu.cores or 1)
    if cpu.threads is not None:
        yield cpu.threads
    elif cpu.sockets is not None and cpu.cores is not None:
        yield cpu.vcpus // others
    elif cpu.placement == "shared" or cpu.smt == "isolate":
        yield 1
    else:
        yield from (
            count for count in range(1, capacity.widest + 1) if cpu.vcpus % (others * count) == 0
        )


def _pages(capacity: Capacity) -> tuple[int, ...]:
    asked = capacity.spec.memory.hugepages
    if asked is False:
        return (ORDINARY,)
    return (GIB_PAGE, MIB_PAGE, ORDINARY) if asked == "auto" else (asked.in_kib,)


def dedicated_vcpus(capacity: Capacity) -> frozenset[int]:
    """The vCPUs that get a CPU each."""
    cpu = capacity.spec.cpu
    every = frozenset(range(cpu.vcpus))
    return {
        "dedicated": every,
        "shared": frozenset[int](),
        "mixed": frozenset(cpu.dedicated or ()),
    }[cpu.placement]


def _cuts(capacity: Capacity, threads: int, page: int) -> Iterator[Layout]:
    """Rule 4: the ways to cut the VM into cells, no guest core cut in two."""
    spec = capacity.spec
    unit = (1024 if page == ORDINARY else page) * 1024
    own = dedicated_vcpus(capacity)
    cores = [set(range(at, at + threads)) for at in range(0, spec.cpu.vcpus, threads)]

    def cell(vcpus: set[int], room: int, exact: int, node: int | None = None) -> CellAsked:
        return CellAsked(len(vcpus & own) // threads, len(vcpus - own), room, exact, node)

    groups = [own, *(set(asked.vcpus) for asked in spec.memory.cell)]
    if any(0 < len(group & core) < threads for group in groups for core in cores):
        return
    if spec.memory.cell:
        if all(asked.size % unit == 0 for asked in spec.memory.cell):
            told = ((asked, asked.size // unit) for asked in spec.memory.cell)
            made = tuple(cell(set(asked.vcpus), units, units, asked.node) for asked, units in told)
            yield Layout(threads, page, made, None)
    elif spec.memory.size % unit == 0:
        for sizes in _sizes(capacity, len(cores)):
            units = spec.memory.size // unit
            is_made = spec.memory.cells is None and spec.cpu.placement != "mixed"
            if spec.memory.cells is not None and units % len(sizes):
                continue
            edges = [0, *accumulate(sizes)]
            parts = [set().union(*cores[first:end]) for first, end in pairwise(edges)]
            room = [ceil(units * len(vcpus) / spec.cpu.vcpus) for vcpus in parts]
            exact = [units * len(vcpus) // spec.cpu.vcpus for vcpus in parts]
            for at in range(units - sum(exact)):
                exact[at] += 1
            if not all(exact):  # QEMU makes no memory of nothing
                continue
            cells = tuple(map(cell, parts, room, exact))
            sizes_made = tuple(len(vcpus) for vcpus in parts) if is_made else None
            yield Layout(threads, page, cells, sizes_made)


def _sizes(capacity: Capacity, cores: int) -> Iterator[tuple[int, ...]]:
    """Yield how many guest cores each cell may have, where they are not told one by one."""
    count = capacity.spec.memory.cells
    if count is not None:
        if cores % count == 0:
            yield (cores // count,) * count
        return
    most = 1 if capacity.spec.cpu.placement == "mixed" else sum(map(bool, capacity.cpus.values()))
    for cells in range(1, most + 1):
        yield from _partitions(cores, cells)


def _partitions(total: int, parts: int, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """Every way to write ``total`` as so many numbers from 1 on, the largest first."""
    if parts == 1:
        if 1 <= total <= (total if most is None else most):
            yield (total,)
        return
    for first in range(min(total - parts + 1, total if most is None else most), 0, -1):
        for rest in _partitions(total - first, parts - 1, first):
            yield (first, *rest)


def _assignments(capacity: Capacity, layout: Layout) -> Iterator[tuple[Place, ...]]:
    """A node for each cell, in every way that rules 4, 5, 6 and 8 allow."""
    allowed = capacity.spec.memory.nodes
    every = [
        place for place in capacity.cpus if allowed is None or place is None or place in allowed
    ]
    choices = [
        [
            place
            for place in every
            if may_hold(capacity, place, has_vcpus=cell.has_vcpus) and cell.node in {None, place}
        ]
        for cell in layout.cells
    ]
    required = capacity.device_nodes("required")
    for places in product(*choices):
        if layout.sizes is not None and len(set(places)) < len(places):
            continue
        if set(required) <= set(places) and all(
            _has_room(capacity, layout, place, places) for place in set(places)
        ):
            yield places


def may_hold(capacity: Capacity, place: Place, *, has_vcpus: bool) -> bool:
    """Rule 5: whether a node that may have memory only may hold a cell."""
    memory = capacity.spec.memory
    named = {cell.node for cell in memory.cell} | set(memory.nodes or ())
    return bool(capacity.cpus[place]) or (not has_vcpus and place in named)


def _exact(layout: Layout, place: Place, places: tuple[Place, ...]) -> int:
    return sum(cell.exact for cell, its in zip(layout.cells, places, strict=True) if its == place)


def _units(layout: Layout, place: Place, places: tuple[Place, ...]) -> int:
    return sum(cell.units for cell, its in zip(layout.cells, places, strict=True) if its == place)


def _has_room(capacity: Capacity, layout: Layout, place: Place, places: tuple[Place, ...]) -> bool:
    units = _units(layout, place, places)
    if layout.page_kib == ORDINARY:
        room = capacity.ordinary_mib(place)
        return room is None or units <= room
    have = capacity.free_pages.get((place, layout.page_kib), 0)
    if capacity.spec.memory.allocate:
        have += capacity.allocatable(place, layout.page_kib)
    return units <= have


Spots = dict[tuple[int, int], Score]
"""The least parts of a node's score by (beside_host, CPUs kept there)."""


def _scores(
    capacity: Capacity,
    layout: Layout,
    places: tuple[Place, ...],
    spots: Callable[[Place, int, int], Spots],
    reserve: Cpus,
) -> Iterator[Score]:
    """The scores of all that can be done with the cells on these nodes."""
    spec = capacity.spec
    cores: dict[Place, int] = dict.fromkeys(capacity.cpus, 0)
    floating = dict(cores)
    for cell, place in zip(layout.cells, places, strict=True):
        cores[place] += cell.guest_cores
        floating[place] += cell.floating
    crowding = load = 0
    for place, vcpus in floating.items():
        if not vcpus:
            continue
        left = pool_left(capacity, layout.threads, place, cores[place])
        theirs = capacity.load(place)
        if left < 1 or (spec.cpu.ratio is not None and vcpus + theirs > spec.cpu.ratio * left):
            return
        crowding = max(crowding, -(-vcpus // left))
        load += ceil((vcpus + theirs) * 1000 / left)
    used = set(places)
    free = {place: capacity.free_pages.get((place, layout.page_kib), 0) for place in used}
    whole_vm = {
        "crowding": crowding,
        "cohabiting": len(places) - len(used),
        "nodes": len(used),
        "distance": sum(
            capacity.distance(place, other) for place in used for other in used if place != other
        ),
        "remote_devices": sum(node not in used for node in capacity.device_nodes("preferred")),
        "small_pages": SMALL[layout.page_kib] if spec.memory.hugepages == "auto" else 0,
        "allocated": 0
        if layout.page_kib == ORDINARY
        else sum(max(0, _exact(layout, place, places) - free[place]) for place in used),
        "unevenness": sum(size**2 for size in layout.sizes or ()),
        "load": load,
    }
    choices = [spots(place, layout.threads, count).items() for place, count in cores.items()]
    is_own = bool(dedicated_vcpus(capacity))
    for chosen in product(*choices):
        kept = sum(each for (_, each), _ in chosen)
        if capacity.given is None and is_own and kept < 2:
            continue
        flags = {
            "narrow": int(is_own and kept < 2),
            "beside_host": max(beside for (beside, _), _ in chosen),
        }
        sums = {name: sum(parts[at] for _, parts in chosen) for at, name in enumerate(PARTS)}
        sums["fast_reserves"] += sum(map(partial(fast, capacity), reserve))
        numbers = {**flags, **whole_vm, **sums}
        yield tuple(numbers[name] for name in ORDER)


def fast(capacity: Capacity, cpu: int) -> int:
    """Return what a CPU of a reserve adds to ``fast_reserves``."""
    return 2 - capacity.rank(capacity.core[cpu]) if any(capacity.kind.values()) else 0


def pool_left(capacity: Capacity, threads: int, place: Place, guest_cores: int) -> int:
    """The ``p`` of rule 7."""
    each = threads if capacity.spec.cpu.smt == "share" else capacity.widest
    return len(capacity.pool & capacity.cpus[place]) - each * guest_cores


def _spots(capacity: Capacity, place: Place, threads: int, count: int) -> Spots:
    """The least parts of a node's score with so many guest cores on it, by (beside_host, kept).

    Every reserve and every set of CPUs is tried.
    """
    cores = sorted({capacity.core[cpu] for cpu in capacity.cpus[place]}, key=min)
    reserves = [frozenset[int]()]
    if capacity.given is None and dedicated_vcpus(capacity):
        reserves += capacity.reserves_on(place)
    found: Spots = {}
    for reserve in reserves:
        reserved = evolve(capacity, reserves=reserve) if reserve else capacity
        kept = len(reserved.housekeeping & reserved.cpus[place])
        for chosen in _chosen(reserved, cores, threads, count):
            beside, parts = _judged(reserved, place, chosen)
            if (beside, kept) not in found or parts < found[beside, kept]:
                found[beside, kept] = parts
    return found


Choice = tuple[Cpus, int, Cpus]
"""A core, how many guest cores are on it, and their CPUs."""


def _chosen(
    capacity: Capacity, cores: list[Cpus], threads: int, count: int
) -> Iterator[tuple[Choice, ...]]:
    """Every way to put so many guest cores on these cores."""
    if count == 0:
        yield ()
        return
    if not cores:
        return
    core, *others = cores
    for number in range(count + 1):
        for cpus in _ways(capacity, core, threads, number):
            for rest in _chosen(capacity, others, threads, count - number):
                yield ((core, number, cpus), *rest) if number else rest


def _ways(capacity: Capacity, core: Cpus, threads: int, number: int) -> Iterator[Cpus]:
    """The sets of CPUs of a core that so many guest cores could have."""
    smt = capacity.spec.cpu.smt
    if number > 1 and not are_threads_told(capacity):
        return
    if number and smt != "share" and (number > 1 or core not in capacity.whole):
        return
    if number and smt == "require" and len(core) != threads:
        return
    yield from map(frozenset, combinations(sorted(core & capacity.eligible), number * threads))


def are_threads_told(capacity: Capacity) -> bool:
    """Rule 2: whether the person said how many threads a guest core has."""
    cpu = capacity.spec.cpu
    return cpu.threads is not None or (cpu.sockets is not None and cpu.cores is not None)


def _judged(capacity: Capacity, place: Place, chosen: tuple[Choice, ...]) -> tuple[int, Score]:
    cpus = frozenset(cpu for _, _, own in chosen for cpu in own)
    used = {core for core, _, _ in chosen}
    left = [core for core in capacity.whole if core <= capacity.cpus[place] and core not in used]
    blocks: dict[object, int] = {}
    for core in left:
        blocks[capacity.l3[min(core)]] = blocks.get(capacity.l3[min(core)], 0) + 1
    numbers = {
        **dict.fromkeys(PARTS, 0),
        "fast_reserves": sum(fast(capacity, cpu) for cpu in capacity.reserves),
        "node_blocks": -(len(left) ** 2),
        "l3_blocks": -sum(number**2 for number in blocks.values()),
    }
    if not dedicated_vcpus(capacity):
        numbers |= {"node_blocks": 0, "l3_blocks": 0}
    if used:
        guests = {core: number for core, number, _ in chosen}
        numbers |= judged_cpus(capacity, place, cpus, guests)
    beside = int(any(core & capacity.housekeeping for core in used))
    return beside, tuple(numbers[name] for name in PARTS)


def judged_cpus(
    capacity: Capacity, place: Place, cpus: Cpus, guests: dict[Cpus, int]
) -> dict[str, int]:
    """The numbers of a node that has these dedicated vCPUs, and guest cores on each core."""
    ranks = {cpu: capacity.rank(capacity.core[cpu]) for cpu in cpus}
    kept = capacity.housekeeping & capacity.cpus[place]
    taken = capacity.housekeeping | capacity.held
    l3s = {capacity.l3[cpu] for cpu in cpus}
    quiet = sum(bool(core & capacity.isolated) for core in guests)
    is_sought = capacity.spec.cpu.realtime and bool(capacity.isolated)
    loops = capacity.helpers(place) + 1
    return {
        "unisolated": sum(
            0 if capacity.core[cpu] <= capacity.isolated else 1 if cpu in capacity.isolated else 2
            for cpu in cpus
        )
        if is_sought
        else 0,
        "on_isolated": 0
        if capacity.spec.cpu.realtime or not quiet
        else 1
        if quiet == len(guests)
        else 2,
        "low_power": sum(rank == 2 for rank in ranks.values()),
        "kinds": len(set(ranks.values())) - 1,
        "slow": sum(rank == 1 for rank in ranks.values()) if capacity.spec.cpu.kind is None else 0,
        "company": sum(
            number for core, number in guests.items() if number > 1 or core - capacity.free
        ),
        "shared_l2": sum(
            number
            for core, number in guests.items()
            if any(mate & taken for mate in capacity.mates(core))
        ),
        "far_helpers": int(not kept),
        "l3": len(l3s),
        "shared_l3": len(l3s & {capacity.l3[cpu] for cpu in kept}),
        "cores": len(guests),
        "helpers": ceil(loops / (3 * len(kept))) - 1 if kept else 0,
    }
