"""Guest cores onto the cores of one node: what the best way costs, and which cores it takes.

The cost of a core depends only on a few counts of it, and the cost of a node is a sum over its L3
caches and cores, so that the exact best for 0, 1, 2, … guest cores at once is a table: a dynamic
programme over cores, then over caches. Tables are made once for all that look alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from itertools import groupby
from operator import add
from typing import TYPE_CHECKING, Final, NamedTuple

from attrs import field, frozen

from kvmhooks.placement.search.weights import UNIT, parts

if TYPE_CHECKING:
    from kvmhooks.placement.search.capacity import CacheDomain, Capacity, Core, Kind, NodeCapacity

SLOW: Final = UNIT["slow"]
COMPANY: Final = UNIT["company"]
L3: Final = UNIT["l3"]
CORES: Final = UNIT["cores"]
LOST: Final = UNIT["node_blocks"]
"""While a table is made, this field counts the whole cores that are lost, which grows with what the
field is at the end."""
L3_BLOCKS: Final = UNIT["l3_blocks"]
MOVED: Final = UNIT["moved_cores"]


LEAST: Final = 16
"""Tables are made for so many guest cores at least, as far as there are places for them."""

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
    is_any_usable: bool = False
    """``usable`` is every CPU of the host, and the VM has none now."""
    current: int = 0
    """The mask of CPUs that the VM has now."""


class Shape(NamedTuple):
    """All of a core that counts; cores of one shape are alike."""

    size: int
    free: int
    usable: int
    is_slow: bool
    is_current: bool


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
        each = [count]
        if len(node.domains) > 1:
            each = _fill_first([self._of_domain(domain) for domain in node.domains], count)
        chosen = []
        for place, taken in enumerate(each):
            if taken:
                domain = node.domains[place]
                options = [self._of_core(core) for core in domain.cores]
                numbers = _fill_first(options, taken)
                cores = [(core, n) for core, n in zip(domain.cores, numbers, strict=True) if n]
                chosen.append((taken, domain, cores))
        return chosen

    def usable(self, core: Core) -> int:
        """Return the CPUs of a core that dedicated vCPUs may have."""
        if core.is_beside_host and not self.rules.may_be_beside_host:
            return 0
        return core.free & self.rules.usable

    def _of_node(self, node: NodeCapacity) -> list[int]:
        key: Hashable = node.likeness
        if not self.rules.is_any_usable:
            shapes = [(domain.whole, self._shapes(domain)) for domain in node.domains]
            key = (node.whole, tuple(sorted(shape for shape in shapes if shape[1])))
        table = self._by_node.get(key)
        if table is None:
            table = [0]
            for domain in node.domains:
                table = _merged(table, self._of_domain(domain), self.limit)
            table = self._by_node[key] = _lossy(table, _node_costs(node.whole))
        return table

    def _of_domain(self, domain: CacheDomain) -> list[int]:
        key: Hashable = domain.likeness
        if not self.rules.is_any_usable:
            key = (domain.whole, self._shapes(domain))
        table = self._by_domain.get(key)
        if table is None:
            table = [0]
            for shape, alike in groupby(reversed(self._shapes(domain))):
                table = self._with(table, shape, len(list(alike)))
            table = self._by_domain[key] = [0, *_lossy(table[1:], _l3_costs(domain.whole))]
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

    def _shapes(self, domain: CacheDomain) -> tuple[Shape, ...]:
        """Return the shapes of the cores of an L3 that take a guest core, in order."""
        if self.rules.is_any_usable:
            some = map(self._shape_of_kind, domain.kinds)
            return tuple(sorted(shape for shape in some if shape is not None))
        made = map(self._shape, domain.cores)
        return tuple(sorted(shape for shape in made if len(self._of_shape(shape)) > 1))

    def _shape(self, core: Core) -> Shape:
        return Shape(
            core.cpus.bit_count(),
            core.free.bit_count(),
            self.usable(core).bit_count(),
            core.is_slow,
            bool(core.cpus & self.rules.current),
        )

    def _shape_of_kind(self, kind: Kind) -> Shape | None:
        """Return the shape; None: it takes no guest core."""
        if kind not in self._by_kind:
            is_usable = not kind.is_beside_host or self.rules.may_be_beside_host
            usable = kind.free if is_usable else 0
            shape = Shape(kind.size, kind.free, usable, kind.is_slow, False)
            self._by_kind[kind] = shape if len(self._of_shape(shape)) > 1 else None
        return self._by_kind[kind]

    def _of_core(self, core: Core) -> tuple[int, ...]:
        return self._of_shape(self._shape(core))

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
            return shape.usable // threads
        is_whole = shape.free == shape.size
        fills = threads == shape.size if smt == "require" else threads <= shape.size
        return int(is_whole and fills and threads <= shape.usable)

    def _cost(self, shape: Shape, count: int) -> int:
        if not count:
            return 0
        is_whole = shape.free == shape.size
        cost = CORES
        if shape.is_slow and self.rules.is_slow_counted:
            cost += SLOW * count * self.rules.threads
        if count > 1 or not is_whole:
            cost += COMPANY * count
        if is_whole:
            cost += LOST
        return cost if shape.is_current else cost + MOVED * count


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
        return first
    if len(first) == 1:
        return list(second[: limit + 1])
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
    made = first
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
