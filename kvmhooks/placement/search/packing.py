"""Guest cores onto the cores of one node: what the best way costs, and which cores it takes.

The cost of a core depends only on a few counts of it, and the cost of a node is a sum over its L3
caches and cores, so that the exact best for 0, 1, 2, … guest cores at once is a table: a dynamic
programme over cores, then over caches. Some choices are made once for all cores of a node (the
reserve of the host there, kinds, isolated cores or others): each such *use* of the node has a
table, and the node's is the least of them, entry by entry. Tables are made once for all that look
alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, groupby
from operator import add
from typing import TYPE_CHECKING, Final, NamedTuple

from attrs import field, frozen

from kvmhooks.placement.search.capacity import kind_of
from kvmhooks.placement.search.weights import UNIT, parts

if TYPE_CHECKING:
    from kvmhooks.placement.search.capacity import CacheDomain, Capacity, Core, Kind, NodeCapacity

UNISOLATED: Final = UNIT["unisolated"]
ON_ISOLATED: Final = UNIT["on_isolated"]
LOW_POWER: Final = UNIT["low_power"]
KINDS: Final = UNIT["kinds"]
SLOW: Final = UNIT["slow"]
COMPANY: Final = UNIT["company"]
SHARED_L2: Final = UNIT["shared_l2"]
FAR_HELPERS: Final = UNIT["far_helpers"]
L3: Final = UNIT["l3"]
SHARED_L3: Final = UNIT["shared_l3"]
HELPERS: Final = UNIT["helpers"]
FAST_RESERVES: Final = UNIT["fast_reserves"]
CORES: Final = UNIT["cores"]
LOST: Final = UNIT["node_blocks"]
"""While a table is made, this field counts the whole cores that are lost, which grows with what the
field is at the end."""
L3_BLOCKS: Final = UNIT["l3_blocks"]
MOVED: Final = UNIT["moved_cores"]


LEAST: Final = 16
"""Tables are made for so many guest cores at least, as far as there are places for them."""

HELPING: Final = 3
"""So many VMs to a CPU have QEMU's other threads there before they want more of them."""

FEW: Final = 5
"""A table that is no longer is merged entry by entry, which is quicker for short ones."""


class Rules(NamedTuple):
    """The parts of a core that a guest core may have."""

    threads: int
    smt: str
    usable: int
    """The mask of CPUs that dedicated vCPUs may have, as far as they are free."""
    may_be_beside_host: bool
    is_slow_counted: bool
    is_alone: bool
    """Two guest cores are never on one core."""
    isolation: str
    """``sought`` by a real-time VM, ``spared`` by another; empty on a host without."""
    is_open: bool
    """Reserves are chosen for the host."""
    is_any_usable: bool = False
    """``usable`` is every CPU of the host, and the VM has none now."""
    current: int = 0
    """The mask of CPUs that the VM has now."""


ANY_CPU: Final = Rules(
    threads=1,
    smt="share",
    usable=0,
    may_be_beside_host=True,
    is_slow_counted=False,
    is_alone=False,
    isolation="",
    is_open=True,
    is_any_usable=True,
)
"""Rules of no VM, for who looks for reserves."""


class Shape(NamedTuple):
    """All of a core that counts; cores of one shape are alike."""

    size: int
    free: int
    usable: int
    quiet: int
    """Usable CPUs that are isolated."""
    isolated: int
    rank: int
    is_unclean: bool
    is_current: bool


class NodeUse(NamedTuple):
    """One choice of all that a node has one choice of."""

    reserve: int = 0
    """The mask of CPUs that become the host's."""
    ranks: tuple[int, ...] | None = None
    """The kinds of cores that guest cores may have; None: all."""
    isolated: bool | None = None
    """Only isolated cores, or only others; None: all."""
    cost: int = 0
    """The cost of this choice, if the node has a guest core."""

    def allows(self, shape: Shape) -> bool:
        """Return whether guest cores may have a core of this shape."""
        return (self.ranks is None or shape.rank in self.ranks) and (
            self.isolated is None or self.isolated == (shape.isolated > 0)
        )

    @property
    def is_plain(self) -> bool:
        """It changes nothing of the node's cores."""
        return not self.reserve and self.ranks is None and self.isolated is None


@frozen(eq=False)
class Packer:
    """Makes the tables for one set of rules, for at most ``limit`` guest cores."""

    rules: Rules
    limit: int
    _by_shape: dict[Shape, tuple[int, ...]] = field(factory=dict)
    _by_count: dict[Shape, list[list[int]]] = field(factory=dict)
    _by_kind: dict[Kind, Shape | None] = field(factory=dict)
    _by_domain: dict[Hashable, list[int]] = field(factory=dict)
    _by_node: dict[Hashable, list[int]] = field(factory=dict)
    _by_site: dict[int, list[int]] = field(factory=dict)

    def costs(self, node: NodeCapacity) -> list[int]:
        """Return the least cost of 0, 1, … guest cores on a node, packed, as far as they fit."""
        table = self._by_site.get(node.index)
        if table is None:
            table = self._by_site[node.index] = self._of_node(node)
        return table

    def choose(
        self, node: NodeCapacity, count: int
    ) -> list[tuple[int, CacheDomain, list[tuple[Core, int]]]]:
        """Return how many guest cores each L3 of a node takes, and on which of its cores how many.

        Of the ways that cost least it is the one that fills the first caches and cores.
        """
        way = self.way(node, count)
        domains = [self._with_reserve(domain, way.reserve) for domain in node.domains]
        each = [count]
        if len(domains) > 1:
            tables = [
                self._of_domain(domain, way, before)
                for domain, before in zip(domains, node.domains, strict=True)
            ]
            each = _fill_first(tables, count)
        chosen = []
        for place, taken in enumerate(each):
            if taken:
                domain = domains[place]
                options = [self._of_core(core, way) for core in domain.cores]
                numbers = _fill_first(options, taken)
                cores = [(core, n) for core, n in zip(domain.cores, numbers, strict=True) if n]
                chosen.append((taken, domain, cores))
        return chosen

    def way(self, node: NodeCapacity, count: int) -> NodeUse:
        """Return the first of the ways in which so many guest cores cost least."""
        ways = list(self._ways(node))
        if len(ways) == 1 or not count:
            return ways[0]
        least = self.costs(node)[count]
        return next(
            way
            for way in ways
            if len(table := self._in_way(node, way)) > count and table[count] == least
        )

    def usable(self, core: Core) -> int:
        """Return the CPUs of a core that dedicated vCPUs may have."""
        if core.is_beside_host and not self.rules.may_be_beside_host:
            return 0
        return core.free & self.rules.usable

    def reserves(self, node: NodeCapacity) -> Iterator[int]:
        """Yield the reserves of a node, of those that are alike one, the smallest caches' first."""
        seen = set()
        for domain in sorted(node.domains, key=lambda domain: domain.size_kib):
            alike = domain.likeness if self.rules.is_any_usable else self._alike(domain)
            if alike not in seen:
                seen.add(alike)
                yield from self._reserves_of(domain)

    def _ways(self, node: NodeCapacity) -> Iterator[NodeUse]:
        """Yield every way that a node can be used, those that change nothing first."""
        restrictions = [*self._restrictions(node)]
        kept, helping = node.kept, node.helpers + 1
        plain = HELPERS * crowd(helping, kept) if kept else FAR_HELPERS
        reserves = [(0, plain)]
        if self.rules.is_open and plain:
            reserves += (
                (
                    reserve,
                    HELPERS * crowd(helping, kept + reserve.bit_count())
                    + self._reserve_cost(node, reserve),
                )
                for reserve in self.reserves(node)
            )
        for reserve, cost in reserves:
            for ranks, isolated, more in restrictions:
                yield NodeUse(reserve, ranks, isolated, cost + more)

    def _restrictions(
        self, node: NodeCapacity
    ) -> Iterator[tuple[tuple[int, ...] | None, bool | None, int]]:
        """Yield the sets of kinds and of isolated cores or others, each with what it costs."""
        cores = [core for domain in node.domains for core in domain.cores]
        ranks = sorted({core.rank for core in cores})
        subsets: list[tuple[tuple[int, ...] | None, int]] = [(None, 0)]
        if len(ranks) > 1:
            subsets = [
                (some, KINDS * (count - 1))
                for count in range(1, len(ranks) + 1)
                for some in combinations(ranks, count)
            ]
        quiet: list[tuple[bool | None, int]] = [(None, 0)]
        if self.rules.isolation == "spared" and any(core.isolated for core in cores):
            quiet = [(False, 0), (True, ON_ISOLATED), (None, 2 * ON_ISOLATED)]
        for some, cost in subsets:
            for isolated, more in quiet:
                yield some, isolated, cost + more

    def _reserve_cost(self, node: NodeCapacity, reserve: int) -> int:
        """Return the cost of a reserve, without that of the whole cores that it takes of its L3."""
        cost = 0
        for domain in node.domains:
            for core in domain.cores:
                if core.cpus & reserve:
                    cost += LOST * core.is_whole
                    if node.is_hybrid:
                        cost += FAST_RESERVES * (2 - core.rank) * (core.cpus & reserve).bit_count()
        return cost

    def _reserves_of(self, domain: CacheDomain) -> Iterator[int]:
        """Yield the reserves of an L3, of those that are alike the first."""
        numbers: dict[Hashable, int] = {}
        own = [self._unlike(core) for core in domain.cores]
        modules: defaultdict[int, list[str]] = defaultdict(list)
        for core, unlike in zip(domain.cores, own, strict=True):
            modules[core.cpus | core.mates].append(repr(unlike))
        alike = {module: tuple(sorted(some)) for module, some in modules.items()}
        singles: list[tuple[int, int, Core]] = []
        seen: set[Hashable] = set()
        for core, unlike in zip(domain.cores, own, strict=True):
            cpus = core.free & ~core.isolated
            module = core.cpus | core.mates
            number = numbers.setdefault((unlike, alike[module]), len(numbers))
            if cpus.bit_count() > 1 and number not in seen:
                seen.add(number)
                yield cpus
            if cpus.bit_count() == 1:
                singles.append((number, module, core))
        for number, module, core in {each[0]: each for each in reversed(singles)}.values():
            for other_number, other_module, other in singles:
                kinds = (min(number, other_number), max(number, other_number))
                pair = (*kinds, module == other_module)
                if core is not other and core.rank == other.rank and pair not in seen:
                    seen.add(pair)
                    yield (core.free & ~core.isolated) | (other.free & ~other.isolated)

    def _unlike(self, core: Core) -> Hashable:
        """Return all by which a core as a reserve differs from others of its L3."""
        return (kind_of(core), self._shape(core))

    def _alike(self, domain: CacheDomain) -> Hashable:
        """Return the same of a whole L3."""
        modules: defaultdict[int, list[str]] = defaultdict(list)
        for core in domain.cores:
            modules[core.cpus | core.mates].append(repr(self._unlike(core)))
        return domain.is_kept, tuple(sorted(tuple(sorted(some)) for some in modules.values()))

    def _with_reserve(self, domain: CacheDomain, reserve: int) -> CacheDomain:
        """Return an L3 with a reserve on it, if that is where it is."""
        if not any(core.cpus & reserve for core in domain.cores):
            return domain
        cores = tuple(
            core._replace(
                free=core.free & ~reserve,
                is_beside_host=core.is_beside_host or core.cpus & reserve != 0,
                is_unclean=core.is_unclean or core.mates & reserve != 0,
            )
            for core in domain.cores
        )
        whole = sum(core.is_whole for core in cores)
        return domain._replace(cores=cores, whole=whole, is_kept=True, likeness=-1)

    def _of_node(self, node: NodeCapacity) -> list[int]:
        key: Hashable = (node.likeness, node.kept, node.helpers)
        if not self.rules.is_any_usable:
            shapes = [(domain.whole, self._alike(domain)) for domain in node.domains]
            key = (node.whole, tuple(sorted(shapes, key=repr)), node.kept, node.helpers)
        table = self._by_node.get(key)
        if table is None:
            ways = [self._in_way(node, way) for way in self._ways(node)]
            table = ways[0]
            for other in ways[1:]:
                table = _least(table, other)
            self._by_node[key] = table
        return table

    def _in_way(self, node: NodeCapacity, way: NodeUse) -> list[int]:
        """Return what guest cores cost on a node in one way."""
        table = [0]
        for domain in node.domains:
            reserved = self._with_reserve(domain, way.reserve)
            table = _merged(table, self._of_domain(reserved, way, domain), self.limit)
        table = [cost + way.cost for cost in table]
        return [0, *_lossy(table, _node_costs(node.whole))[1:]]

    def _of_domain(self, domain: CacheDomain, way: NodeUse, before: CacheDomain) -> list[int]:
        """Return what guest cores cost on an L3 that was ``before`` there was a reserve."""
        is_with_reserve = domain is not before
        is_quick = self.rules.is_any_usable and not is_with_reserve
        key: Hashable = (domain.likeness, way.ranks, way.isolated)
        if not is_quick:
            key = (before.whole, domain.whole, domain.is_kept, self._shapes(domain, way))
        table = self._by_domain.get(key)
        if table is None:
            table = [0]
            for shape, alike in groupby(reversed(self._shapes(domain, way))):
                table = self._with(table, shape, len(list(alike)))
            reserved = before.whole - domain.whole
            costs = _l3_costs(before.whole)[reserved:]
            if domain.is_kept:
                costs = tuple(cost + SHARED_L3 for cost in costs)
            lost = L3_BLOCKS * _loss(before.whole, reserved)
            table = self._by_domain[key] = [lost, *_lossy(table, costs)[1:]]
        return table

    def _with(self, table: list[int], shape: Shape, count: int) -> list[int]:
        """Return the table with so many cores of one shape added."""
        options = self._of_shape(shape)
        if len(table) > 1 and len(options) == 2:
            for _ in range(count):
                table = _merged(table, options, self.limit)
            return table
        alike = self._by_count.setdefault(shape, [[0]])
        while len(alike) <= count:
            alike.append(_merged(alike[-1], options, self.limit))
        return _merged(table, alike[count], self.limit)

    def _shapes(self, domain: CacheDomain, way: NodeUse) -> tuple[Shape, ...]:
        """Return the shapes of the cores of an L3 that take a guest core, in order."""
        if self.rules.is_any_usable and domain.likeness >= 0:
            some = map(self._shape_of_kind, domain.kinds)
            return tuple(sorted(shape for shape in some if shape is not None and way.allows(shape)))
        made = map(self._shape, domain.cores)
        return tuple(
            sorted(shape for shape in made if len(self._of_shape(shape)) > 1 and way.allows(shape))
        )

    def _shape(self, core: Core) -> Shape:
        usable = self.usable(core)
        return Shape(
            core.cpus.bit_count(),
            core.free.bit_count(),
            usable.bit_count(),
            (usable & core.isolated).bit_count(),
            core.isolated.bit_count(),
            core.rank,
            core.is_unclean,
            bool(core.cpus & self.rules.current),
        )

    def _shape_of_kind(self, kind: Kind) -> Shape | None:
        """Return the shape; None: it takes no guest core."""
        if kind not in self._by_kind:
            is_usable = not kind.is_beside_host or self.rules.may_be_beside_host
            shape = Shape(
                kind.size,
                kind.free,
                kind.free if is_usable else 0,
                kind.quiet if is_usable else 0,
                kind.isolated,
                kind.rank,
                kind.is_unclean,
                False,
            )
            self._by_kind[kind] = shape if len(self._of_shape(shape)) > 1 else None
        return self._by_kind[kind]

    def _of_core(self, core: Core, way: NodeUse) -> tuple[int, ...]:
        shape = self._shape(core)
        return self._of_shape(shape) if way.allows(shape) else (0,)

    def _of_shape(self, shape: Shape) -> tuple[int, ...]:
        costs = self._by_shape.get(shape)
        if costs is None:
            costs = self._by_shape[shape] = tuple(
                self._cost(shape, count) for count in range(self._most(shape) + 1)
            )
        return costs

    def _most(self, shape: Shape) -> int:
        """Return how many guest cores a core may take."""
        threads, smt = self.rules.threads, self.rules.smt
        if smt == "share":
            most = shape.usable // threads
            return min(most, 1) if self.rules.is_alone else most
        is_whole = shape.free == shape.size
        fills = threads == shape.size if smt == "require" else threads <= shape.size
        return int(is_whole and fills and threads <= shape.usable)

    def _cost(self, shape: Shape, count: int) -> int:
        if not count:
            return 0
        is_whole = shape.free == shape.size
        cost = CORES
        cpus = count * self.rules.threads
        if self.rules.isolation == "sought" and shape.isolated < shape.size:
            cost += UNISOLATED * (2 * cpus - min(cpus, shape.quiet))
        if shape.rank == 2:
            cost += LOW_POWER * cpus
        elif shape.rank and self.rules.is_slow_counted:
            cost += SLOW * cpus
        if shape.is_unclean:
            cost += SHARED_L2 * count
        if count > 1 or not is_whole:
            cost += COMPANY * count
        if is_whole:
            cost += LOST
        return cost if shape.is_current else cost + MOVED * count


def crowd(helping: int, cpus: int) -> int:
    """Return how crowded QEMU's other threads of so many VMs are on so many CPUs."""
    return -(-helping // (HELPING * cpus)) - 1


def _least(first: list[int], second: list[int]) -> list[int]:
    """Return the least of two tables, entry by entry; they may differ in length."""
    longer = first if len(first) > len(second) else second
    least = [min(pair) for pair in zip(first, second, strict=False)]
    return [*least, *longer[len(least) :]]


def packer_on(capacity: Capacity, rules: Rules, guest_cores: int) -> Packer:
    """Return a packer for so many guest cores at least, the same one each time for the same
    capacity.

    Sizes are rounded up, so that VMs of about one size share its tables.
    """
    limit = max(1 << (guest_cores - 1).bit_length(), LEAST) if guest_cores else 0
    key = (rules, limit)
    if key not in capacity.packers:
        capacity.packers[key] = Packer(rules, limit)
    packer: Packer = capacity.packers[key]
    return packer


def _merged(first: list[int], second: Sequence[int], limit: int) -> list[int]:
    """Return the least cost of each total: so many by the one, the rest by the other."""
    if len(second) == 1:
        return [cost + second[0] for cost in first] if second[0] else first
    if len(first) == 1:
        some = second[: limit + 1]
        return [cost + first[0] for cost in some] if first[0] else list(some)
    if len(second) <= FEW:
        return _merged_few(first, second)[: limit + 1]
    most = min(len(first) + len(second) - 2, limit)
    backwards = list(second[::-1])
    last = len(second) - 1
    return [
        min(
            map(
                add,
                first[max(total - last, 0) : total + 1],
                backwards[max(last - total, 0) :],
            )
        )
        for total in range(most + 1)
    ]


def _lossy(table: list[int], of_lost: Sequence[int]) -> list[int]:
    """Return the table with what the loss of whole cores costs."""
    return [
        cost + of_lost[lost] for cost, lost in zip(table, parts(table, "node_blocks"), strict=True)
    ]


def _merged_few(first: list[int], second: Sequence[int]) -> list[int]:
    """Return the same for a second table that is short, as that of one core is."""
    made = [cost + second[0] for cost in first] if second[0] else first
    for taken, cost in enumerate(second[1:], start=1):
        more = [least + cost for least in first]
        pairs = zip(made[taken:], more, strict=False)
        both = [a if a < b else b for a, b in pairs]  # noqa: FURB136 -- a call costs three times that
        made = [*made[:taken], *both, *more[len(both) :]]
    return made


def _fill_first(tables: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return how many each takes of the least costly way; of several, the first take the most."""
    if len(tables) == 1:
        return [count]
    most = [len(table) - 1 for table in tables]
    if sum(most) == count:
        return most
    rest: list[list[int]] = [[0]]
    for table in reversed(tables):
        rest.append(_merged(rest[-1], table, count))
    rest.reverse()
    taken = []
    for place, table in enumerate(tables):
        best, after = rest[place][count], rest[place + 1]
        number = min(count, len(table) - 1)
        while table[number] + after[count - number] != best:
            number -= 1
        taken.append(number)
        count -= number
    return taken


@lru_cache(maxsize=512)
def _l3_costs(whole: int) -> tuple[int, ...]:
    """Return what it costs to use an L3 that has so many whole cores, by those that it loses."""
    return tuple(L3 + L3_BLOCKS * _loss(whole, lost) for lost in range(whole + 1))


@lru_cache(maxsize=512)
def _node_costs(whole: int) -> tuple[int, ...]:
    """Return the same of a node: the count of lost cores as the loss of their square."""
    return tuple(LOST * (_loss(whole, lost) - lost) for lost in range(whole + 1))


def _loss(whole: int, lost: int) -> int:
    """Return by how much the square of the whole cores shrinks."""
    return whole * whole - (whole - lost) * (whole - lost)
