"""The best placement there is, found in the order of the objective.

The heaviest number is decided first: each step looks only at what is best so far. Within a step all
possibilities are looked at, so that the result is exact; where there are more than ``effort``
allows, it is the best of those seen and says by how much it could be better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from attrs import field, frozen

from kvmhooks.placement.search.divisions import evenly, partitions
from kvmhooks.placement.search.matching import cheapest
from kvmhooks.placement.search.node_sets import Neighbourhood, NodeSet, neighbourhood
from kvmhooks.placement.search.objective import WEIGHED
from kvmhooks.placement.search.weights import UNIT, part

if TYPE_CHECKING:
    from kvmhooks.placement.request import CellAsk
    from kvmhooks.placement.search.capacity import NodeCapacity
    from kvmhooks.placement.search.node_costs import NodeCosts


@frozen(kw_only=True)
class Effort:
    """The number of possibilities to look at before a result is only the best of those seen."""

    sets: int = 20_000
    """Sets of nodes."""
    matchings: int = 500
    """Ways to put cells on the nodes of a set."""
    partitions: int = 5_000
    """Ways to put several cells on one node."""
    steps: int = 20_000
    """Single cells that are put on a node with others on the way to those."""


@frozen(kw_only=True)
class NodeAffinity:
    """The nodes of devices: by the index of a node, how many prefer it, and who must have it."""

    preferred: Mapping[int, int] = field(factory=dict)
    required: frozenset[int] = frozenset()

    def count(self, node: NodeCapacity) -> int:
        """Return how many devices prefer a node."""
        return self.preferred.get(node.index, 0)


class Assignment(NamedTuple):
    """Each cell on its node; less is better."""

    cohabiting: int
    nodes: int
    distance: int
    remote_devices: int
    packed: int
    cells: tuple[CellAsk, ...]
    numa_nodes: tuple[NodeCapacity, ...]
    gap: tuple[tuple[str, int], ...]
    """The first number that could be less, and by how much at most; empty: none."""


class SearchLimit(Exception):
    """Not all possibilities were looked at, and none of those that were fits."""


@frozen(eq=False)
class Search:
    """The best assignment of a request's cells, or None: none fits. Raises ``SearchLimit``."""

    node_costs: NodeCosts
    affinity: NodeAffinity
    effort: Effort
    homes: tuple[int | None, ...] = ()
    """For each cell the node where its memory is now; empty for a VM that is new."""

    def best(self) -> Assignment | None:
        """Look for it."""
        request = self.node_costs.request
        if not request.cells:
            return self._of_made_cells()
        if not self.node_costs.can_hold(request.cells):
            return None
        for nodes in range(
            min(len(request.cells), len(self.node_costs.capacity.numa_nodes)), 0, -1
        ):
            found = self._of_given_cells(request.cells, nodes)
            if found is not None:
                return found
        return None

    def _of_given_cells(self, cells: tuple[CellAsk, ...], nodes: int) -> Assignment | None:
        """Return the best of given cells on so many nodes: those of a node are as one."""
        best: Assignment | None = None
        is_cut = False
        for number, partition in enumerate(partitions(cells, nodes, self.effort.steps)):
            if number == self.effort.partitions or partition is None:
                is_cut = True
                break
            groups, merged = partition
            assigned = self._assign(merged)
            if assigned is None or (best is not None and assigned[2:5] >= best[2:5]):
                continue
            places = {
                cell: node
                for group, node in zip(groups, assigned.numa_nodes, strict=True)
                for cell in group
            }
            numa_nodes = tuple(places[cell] for cell in range(len(cells)))
            best = assigned._replace(
                cohabiting=len(cells) - nodes, cells=cells, numa_nodes=numa_nodes
            )
        if is_cut and best is None:
            raise SearchLimit
        if is_cut and best is not None:
            return best._replace(gap=(("distance", best.distance),))
        return best

    def _assign(self, cells: Sequence[CellAsk]) -> Assignment | None:
        """Return the best of cells that have a node each."""
        numa_nodes = self.node_costs.capacity.numa_nodes
        costs = [self._costs(cells, at, numa_nodes) for at in range(len(cells))]
        usable = [node for node in numa_nodes if any(row[node.index] is not None for row in costs)]
        least = [min((cost for cost in row if cost is not None), default=None) for row in costs]
        if len(usable) < len(cells) or None in least:
            return None
        around = self._around(usable)
        if around is None:
            return None
        bound = sum(cost for cost in least if cost is not None)
        lists, nearest = self._sets(around, len(cells))
        left = self.effort.matchings
        for alike in lists:
            best = _best_onto(costs, alike[:left], bound)
            is_cut = nearest is not None or len(alike) > left
            left -= len(alike)
            if best is not None:
                packed, chosen, nodes = best
                assignment = Assignment(
                    0,
                    len(cells),
                    nodes.distance,
                    nodes.remote_devices,
                    packed,
                    tuple(cells),
                    tuple(numa_nodes[index] for index in chosen),
                    (),
                )
                return (
                    assignment._replace(gap=_gap(assignment, nearest, bound))
                    if is_cut
                    else assignment
                )
            if left <= 0:
                raise SearchLimit
        if nearest is not None:
            raise SearchLimit
        return None

    def _of_made_cells(self) -> Assignment | None:
        """Return the best with as few cells as can be, one for each node."""
        request = self.node_costs.request
        found = self._assign(request.even_cells([request.guest_cores]))
        if found is not None:
            return found
        most = {
            node.index: self.node_costs.most(node) for node in self.node_costs.capacity.numa_nodes
        }
        usable = [node for node in self.node_costs.capacity.numa_nodes if most[node.index]]
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

    def _split(
        self, around: Neighbourhood, most: Mapping[int, int], count: int
    ) -> Assignment | None:
        """Return the best split over so many nodes; of exchangeable ones the first."""
        request = self.node_costs.request
        lists, nearest = self._sets(around, count)
        for alike in lists:
            shaped = []
            for nodes in alike:
                numa_nodes = [node for group, number in nodes.parts for node in group[:number]]
                sizes = evenly(request.guest_cores, [most[node.index] for node in numa_nodes])
                # Each cell has a page at least: QEMU makes no memory of none.
                if sizes is not None and all(cell.units for cell in request.even_cells(sizes)):
                    shaped.append((sum(size * size for size in sizes), nodes, numa_nodes, sizes))
            if not shaped:
                continue
            flattest = min(candidate[0] for candidate in shaped)
            candidates = [candidate[1:] for candidate in shaped if candidate[0] == flattest]
            assigned = [
                self._shaped(nodes, numa_nodes, sizes)
                for nodes, numa_nodes, sizes in candidates[: self.effort.matchings]
            ]
            best = min(assigned, key=lambda assignment: assignment.packed)
            if nearest is not None or len(candidates) > len(assigned):
                bound = best.packed // UNIT["unevenness"] * UNIT["unevenness"]
                return best._replace(gap=_gap(best, nearest, bound))
            return best
        if nearest is not None:
            raise SearchLimit
        return None

    def _shaped(
        self, nodes: NodeSet, numa_nodes: Sequence[NodeCapacity], sizes: Sequence[int]
    ) -> Assignment:
        """Return cells of these sizes on these nodes."""
        cells = self.node_costs.request.even_cells(sizes)
        costs = [self._costs(cells, at, numa_nodes) for at in range(len(cells))]
        chosen = cheapest(costs)
        assert chosen is not None  # each node was counted with its room
        return Assignment(
            0,
            len(cells),
            nodes.distance,
            nodes.remote_devices,
            sum(costs[at][place] or 0 for at, place in enumerate(chosen)),
            cells,
            tuple(numa_nodes[place] for place in chosen),
            (),
        )

    def _costs(
        self, cells: Sequence[CellAsk], at: int, numa_nodes: Sequence[NodeCapacity]
    ) -> list[int | None]:
        """Return the costs of a cell on each node: early cells and low numbers go together."""
        cell = cells[at]
        order = len(cells) - at
        known = self.node_costs.costs(cell)
        costs = [
            None if (cost := known[node.index]) is None else cost + node.index * order
            for node in numa_nodes
        ]
        if len(self.homes) == len(cells):
            moved = UNIT["moved_mib"] * (cell.units * self.node_costs.request.unit_kib >> 10)
            costs = [
                cost if cost is None or node.node == self.homes[at] else cost + moved
                for cost, node in zip(costs, numa_nodes, strict=True)
            ]
        return costs

    def _around(
        self, usable: Sequence[NodeCapacity], most: Mapping[int, int] | None = None
    ) -> Neighbourhood | None:
        """Return the nodes that may be used; None when one that must be is not among them."""
        if not self.affinity.required <= {node.index for node in usable}:
            return None
        request = self.node_costs.request

        def likeness(node: NodeCapacity) -> tuple[object, ...]:
            if most is None:
                return ()
            table = self.node_costs.packer.costs(node)[: request.guest_cores + 1]
            pages = node.pages.get(request.page_kib, 0)
            return most[node.index], tuple(table), pages, node.load, len(node.pool)

        return neighbourhood(
            usable,
            devices=self.affinity.count,
            total_devices=sum(self.affinity.preferred.values()),
            required=self.affinity.required,
            likeness=likeness,
            is_flat=self.node_costs.capacity.is_flat,
        )

    def _sets(self, around: Neighbourhood, size: int) -> tuple[list[list[NodeSet]], int | None]:
        """Return the sets to look at; where they are not all, the distance that none is below."""
        lists = around.sets(size, self.effort.sets)
        if lists is not None:
            return lists, None
        return around.near_sets(size), around.least_distance(size)


def _best_onto(
    costs: Sequence[Sequence[int | None]], alike: Sequence[NodeSet], bound: int
) -> tuple[int, list[int], NodeSet] | None:
    """Return the least cost of cells on one of some sets; none is below ``bound``."""
    best: tuple[int, list[int], NodeSet] | None = None
    for nodes in alike:
        assigned = _onto(costs, nodes)
        if assigned is not None and (best is None or assigned[0] < best[0]):
            best = (*assigned, nodes)
            if assigned[0] == bound:
                break
    return best


def _onto(costs: Sequence[Sequence[int | None]], nodes: NodeSet) -> tuple[int, list[int]] | None:
    """Return the least cost of cells on a set of nodes, and the index of each cell's node.

    Of a group of nodes only so many are used: the others are filled with cells of no cost.
    """
    columns = [node.index for group, _ in nodes.parts for node in group]
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
    assigned = chosen[: len(costs)]
    packed = sum(rows[row][column] or 0 for row, column in enumerate(assigned))
    return packed, [columns[column] for column in assigned]


def _gap(found: Assignment, nearest: int | None, bound: int) -> tuple[tuple[str, int], ...]:
    """Return the first number of an assignment that may be too large, and by how much at most."""
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
