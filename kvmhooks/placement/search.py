"""The best placement there is, found in the order of the objective.

What weighs most is decided first: each step looks only at what is best so far. Within a step all
possibilities are looked at, so that the result is exact; where there are more than ``effort``
allows, it is the best of those seen and says by how much it could be better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from attrs import field, frozen

from kvmhooks.placement.ground import Site
from kvmhooks.placement.matching import cheapest
from kvmhooks.placement.node_sets import Neighbourhood, NodeSet, neighbourhood
from kvmhooks.placement.objective import WEIGHED
from kvmhooks.placement.request import CellAsk
from kvmhooks.placement.seats import Seats
from kvmhooks.placement.weights import UNIT, part


@frozen(kw_only=True)
class Effort:
    """How many possibilities are looked at before a result is only the best of those seen."""

    sets: int = 20_000
    """Sets of nodes."""
    matchings: int = 500
    """Ways to seat cells on a set."""
    partitions: int = 5_000
    """Ways to put several cells on one node."""
    steps: int = 20_000
    """Single cells that are put on a node with others on the way to those."""


@frozen(kw_only=True)
class Near:
    """The nodes of devices: by the index of a site, how many prefer it, and who must have it."""

    preferred: Mapping[int, int] = field(factory=dict)
    required: frozenset[int] = frozenset()

    def count(self, site: Site) -> int:
        """How many devices prefer a node."""
        return self.preferred.get(site.index, 0)


class Seating(NamedTuple):
    """Each cell on its node; less is better."""

    cohabiting: int
    nodes: int
    distance: int
    remote_devices: int
    packed: int
    cells: tuple[CellAsk, ...]
    sites: tuple[Site, ...]
    gap: tuple[tuple[str, int], ...]
    """The first number that could be less, and by how much at most; empty: none."""


class Cut(Exception):
    """Not all possibilities were looked at, and none of those that were fits."""


@frozen(eq=False)
class Search:
    """The best seating of one request, or None: it does not fit. Raises ``Cut``."""

    seats: Seats
    near: Near
    effort: Effort
    homes: tuple[int | None, ...] = ()
    """For each cell the node where its memory is now; empty for a VM that is new."""

    def best(self) -> Seating | None:
        """Look for it."""
        request = self.seats.request
        if not request.cells:
            return self._of_made_cells()
        if not self.seats.can_hold(request.cells):
            return None
        for nodes in range(min(len(request.cells), len(self.seats.ground.sites)), 0, -1):
            found = self._of_given_cells(request.cells, nodes)
            if found is not None:
                return found
        return None

    def _of_given_cells(self, cells: tuple[CellAsk, ...], nodes: int) -> Seating | None:
        """The best of given cells on so many nodes: those of a node are as one."""
        best: Seating | None = None
        is_cut = False
        for number, partition in enumerate(partitions(cells, nodes, self.effort.steps)):
            if number == self.effort.partitions or partition is None:
                is_cut = True
                break
            groups, merged = partition
            seated = self._seat(merged)
            if seated is None or (best is not None and seated[2:5] >= best[2:5]):
                continue
            places = {
                cell: site
                for group, site in zip(groups, seated.sites, strict=True)
                for cell in group
            }
            sites = tuple(places[cell] for cell in range(len(cells)))
            best = seated._replace(cohabiting=len(cells) - nodes, cells=cells, sites=sites)
        if is_cut and best is None:
            raise Cut
        if is_cut and best is not None:
            return best._replace(gap=(("distance", best.distance),))
        return best

    def _seat(self, cells: Sequence[CellAsk]) -> Seating | None:
        """The best of cells that have a node each."""
        sites = self.seats.ground.sites
        costs = [self._costs(cells, at, sites) for at in range(len(cells))]
        usable = [site for site in sites if any(row[site.index] is not None for row in costs)]
        least = [min((one for one in row if one is not None), default=None) for row in costs]
        if len(usable) < len(cells) or None in least:
            return None
        around = self._around(usable)
        if around is None:
            return None
        bound = sum(one for one in least if one is not None)
        lists, nearest = self._sets(around, len(cells))
        left = self.effort.matchings
        for alike in lists:
            best = _best_onto(costs, alike[:left], bound)
            is_cut = nearest is not None or len(alike) > left
            left -= len(alike)
            if best is not None:
                packed, chosen, nodes = best
                seating = Seating(
                    0,
                    len(cells),
                    nodes.distance,
                    nodes.remote_devices,
                    packed,
                    tuple(cells),
                    tuple(sites[index] for index in chosen),
                    (),
                )
                return seating._replace(gap=_gap(seating, nearest, bound)) if is_cut else seating
            if left <= 0:
                raise Cut
        if nearest is not None:
            raise Cut
        return None

    def _of_made_cells(self) -> Seating | None:
        """The best with as few cells as can be, one for each node."""
        request = self.seats.request
        found = self._seat(request.even_cells([request.guest_cores]))
        if found is not None:
            return found
        most = {site.index: self.seats.most(site) for site in self.seats.ground.sites}
        usable = [site for site in self.seats.ground.sites if most[site.index]]
        around = self._around(usable, most)
        if around is None:
            return None
        caps = sorted(most.values(), reverse=True)
        for count in range(2, min(len(usable), request.guest_cores) + 1):
            if sum(caps[:count]) >= request.guest_cores:
                found = self._split(around, most, count)
                if found is not None:
                    return found
        return None

    def _split(self, around: Neighbourhood, most: Mapping[int, int], count: int) -> Seating | None:
        """The best split over so many nodes; those of a group can be exchanged: the first do."""
        request = self.seats.request
        lists, nearest = self._sets(around, count)
        for alike in lists:
            shaped = []
            for nodes in alike:
                sites = [site for group, number in nodes.parts for site in group[:number]]
                sizes = evenly(request.guest_cores, [most[site.index] for site in sites])
                # Each cell has a page at least: QEMU makes no memory of none.
                if sizes is not None and all(cell.units for cell in request.even_cells(sizes)):
                    shaped.append((sum(size * size for size in sizes), nodes, sites, sizes))
            if not shaped:
                continue
            flattest = min(one[0] for one in shaped)
            candidates = [one[1:] for one in shaped if one[0] == flattest]
            seated = [
                self._shaped(nodes, sites, sizes)
                for nodes, sites, sizes in candidates[: self.effort.matchings]
            ]
            best = min(seated, key=lambda one: one.packed)
            if nearest is not None or len(candidates) > len(seated):
                bound = best.packed // UNIT["unevenness"] * UNIT["unevenness"]
                return best._replace(gap=_gap(best, nearest, bound))
            return best
        if nearest is not None:
            raise Cut
        return None

    def _shaped(self, nodes: NodeSet, sites: Sequence[Site], sizes: Sequence[int]) -> Seating:
        """Cells of these sizes on these nodes."""
        cells = self.seats.request.even_cells(sizes)
        costs = [self._costs(cells, at, sites) for at in range(len(cells))]
        chosen = cheapest(costs)
        assert chosen is not None  # each node was counted with its room
        return Seating(
            0,
            len(cells),
            nodes.distance,
            nodes.remote_devices,
            sum(costs[at][place] or 0 for at, place in enumerate(chosen)),
            cells,
            tuple(sites[place] for place in chosen),
            (),
        )

    def _costs(self, cells: Sequence[CellAsk], at: int, sites: Sequence[Site]) -> list[int | None]:
        """What a cell costs on each node: early cells and low numbers go together."""
        cell = cells[at]
        order = len(cells) - at
        known = self.seats.costs(cell)
        costs = [
            None if (cost := known[site.index]) is None else cost + site.index * order
            for site in sites
        ]
        if len(self.homes) == len(cells):
            moved = UNIT["moved_mib"] * (cell.units * self.seats.request.unit_kib >> 10)
            costs = [
                cost if cost is None or site.node == self.homes[at] else cost + moved
                for cost, site in zip(costs, sites, strict=True)
            ]
        return costs

    def _around(
        self, usable: Sequence[Site], most: Mapping[int, int] | None = None
    ) -> Neighbourhood | None:
        """The nodes that may be used; None when one that must be is not among them."""
        if not self.near.required <= {site.index for site in usable}:
            return None
        request = self.seats.request

        def likeness(site: Site) -> tuple[object, ...]:
            if most is None:
                return ()
            table = self.seats.packer.costs(site)[: request.guest_cores + 1]
            pages = site.pages.get(request.page_kib, 0)
            return most[site.index], tuple(table), pages, site.load, len(site.pool)

        return neighbourhood(
            usable,
            devices=self.near.count,
            total_devices=sum(self.near.preferred.values()),
            required=self.near.required,
            likeness=likeness,
            is_flat=self.seats.ground.is_flat,
        )

    def _sets(self, around: Neighbourhood, size: int) -> tuple[list[list[NodeSet]], int | None]:
        """The sets to look at; where they are not all, the distance that none is below."""
        lists = around.sets(size, self.effort.sets)
        if lists is not None:
            return lists, None
        return around.near_sets(size), around.least_distance(size)


def partitions(
    cells: Sequence[CellAsk], count: int, steps: int
) -> Iterator[tuple[list[list[int]], list[CellAsk]] | None]:
    """Yield every way to put cells into ``count`` groups, with the groups as single cells.

    Ways that differ by cells that are alike only are one: whatever has come to the same groups
    before goes on in the same ways. After so many ``steps`` None is the last.
    """
    if count == len(cells):
        yield [[at] for at in range(count)], list(cells)
        return
    seen: set[tuple[object, ...]] = set()
    groups: list[list[int]] = []
    merged: list[CellAsk] = []

    def rest(at: int) -> Iterator[tuple[list[list[int]], list[CellAsk]] | None]:
        key = (
            at,
            *sorted(
                (
                    one.cores,
                    one.floating,
                    one.units,
                    one.room,
                    -1 if one.node is None else one.node,
                )
                for one in merged
            ),
        )
        if key in seen or len(seen) > steps:
            return
        seen.add(key)
        if len(seen) > steps:
            yield None
            return
        if at == len(cells):
            yield [list(group) for group in groups], list(merged)
            return
        cell = cells[at]
        if len(groups) + len(cells) - at > count:
            for place, before in enumerate(merged):
                if not before.contradicts(cell):
                    groups[place].append(at)
                    merged[place] = before.with_other(cell)
                    yield from rest(at + 1)
                    groups[place].pop()
                    merged[place] = before
        if len(groups) < count:
            groups.append([at])
            merged.append(cell)
            yield from rest(at + 1)
            groups.pop()
            merged.pop()

    yield from rest(0)


def evenly(total: int, caps: Sequence[int]) -> list[int] | None:
    """``total`` in parts as even as ``caps`` let them be, each 1 at least, the largest first.

    Raising the smallest part that has room, one by one, gives the least sum of squares; here the
    parts that are at their caps are taken out first.
    """
    if min(caps) < 1 or sum(caps) < total or total < len(caps):
        return None
    sizes, left = [], total
    ordered = sorted(caps)
    for at, cap in enumerate(ordered):
        among = len(ordered) - at
        if cap * among <= left:
            sizes.append(cap)
            left -= cap
        else:
            each, more = divmod(left, among)
            sizes += [each + (place < more) for place in range(among)]
            break
    return sorted(sizes, reverse=True)


def _best_onto(
    costs: Sequence[Sequence[int | None]], alike: Sequence[NodeSet], bound: int
) -> tuple[int, list[int], NodeSet] | None:
    """The least cost of cells on one of some sets; none is below ``bound``."""
    best: tuple[int, list[int], NodeSet] | None = None
    for nodes in alike:
        seated = _onto(costs, nodes)
        if seated is not None and (best is None or seated[0] < best[0]):
            best = (*seated, nodes)
            if seated[0] == bound:
                break
    return best


def _onto(costs: Sequence[Sequence[int | None]], nodes: NodeSet) -> tuple[int, list[int]] | None:
    """The least cost of cells on a set of nodes, and the index of each cell's node.

    Of a group of nodes only so many are used: the others are filled with cells of no cost.
    """
    columns = [site.index for group, _ in nodes.parts for site in group]
    rows: list[list[int | None]] = [[row[index] for index in columns] for row in costs]
    first = 0
    for group, count in nodes.parts:
        for _ in range(len(group) - count if len(nodes.parts) > 1 else 0):
            blank: list[int | None] = [None] * len(columns)
            blank[first : first + len(group)] = [0] * len(group)
            rows.append(blank)
        first += len(group)
    chosen = cheapest(rows)
    if chosen is None:
        return None
    seated = chosen[: len(costs)]
    packed = sum(rows[row][column] or 0 for row, column in enumerate(seated))
    return packed, [columns[column] for column in seated]


def _gap(found: Seating, nearest: int | None, bound: int) -> tuple[tuple[str, int], ...]:
    """The first number of a seating that may be more than it must, and by how much at most."""
    if nearest is not None:
        if found.distance > nearest:
            return (("distance", found.distance - nearest),)
        if found.remote_devices:
            return (("remote_devices", found.remote_devices),)
    for name in WEIGHED:
        more = part(found.packed, name) - part(bound, name)
        if more > 0:
            return ((name, more),)
    return ()
