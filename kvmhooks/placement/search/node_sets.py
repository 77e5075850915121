"""The nodes that a VM uses: sets of them, the nearest to each other first.

The distance of a set and its remote devices depend on nothing but the set, so that sets come in the
order of the objective, and which cell is where follows. Nodes that are as far from every other node
(the nodes of one socket, say) are told by how many of them there are, not by which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import ne
from typing import TYPE_CHECKING, NamedTuple

from attrs import frozen

if TYPE_CHECKING:
    from kvmhooks.placement.search.capacity import NodeCapacity


class NodeSet(NamedTuple):
    """So many nodes of each of some groups of nodes."""

    distance: int
    remote_devices: int
    parts: tuple[tuple[tuple[NodeCapacity, ...], int], ...]
    """(the nodes of a group, how many of them)."""


@frozen(eq=False)
class Neighbourhood:
    """The nodes that may be used."""

    groups: tuple[tuple[NodeCapacity, ...], ...]
    devices: Callable[[NodeCapacity], int]
    """The function that counts a node's devices whose locality is preferred."""
    total_devices: int
    required: frozenset[int]
    """Indices of nodes that must be used."""

    def sets(self, size: int, most: int) -> list[list[NodeSet]] | None:
        """Return all sets of ``size`` nodes, those alike in one list, the best list first.

        None when there are more than ``most``.
        """
        found: list[NodeSet] = []
        for counts in self._counts(size):
            found.append(self._measured(counts))
            if len(found) > most:
                return None
        found.sort(key=lambda candidate: candidate[:2])
        return [list(alike) for _, alike in groupby(found, key=lambda candidate: candidate[:2])]

    def near_sets(self, size: int) -> list[list[NodeSet]]:
        """Return some sets of ``size``: around each node those nearest, as ``sets`` gives them."""
        numa_nodes = [node for group in self.groups for node in group]
        found = {}
        for start in numa_nodes:
            chosen = {index: node for node in numa_nodes if (index := node.index) in self.required}
            chosen.setdefault(start.index, start)
            while len(chosen) < size:
                rest = [node for node in numa_nodes if node.index not in chosen]
                nearest = min(
                    rest,
                    key=lambda node: (
                        sum(_between(node, other) for other in chosen.values()),
                        node.index,
                    ),
                )
                chosen[nearest.index] = nearest
            if len(chosen) == size:
                ordered = tuple(chosen[index] for index in sorted(chosen))
                found[ordered] = self._measured([((node,), 1) for node in ordered])
        some = sorted(found.values(), key=lambda candidate: candidate[:2])
        return [list(alike) for _, alike in groupby(some, key=lambda candidate: candidate[:2])]

    def least_distance(self, size: int) -> int:
        """Return a bound: no set of ``size`` nodes has less distance than this."""
        numa_nodes = [node for group in self.groups for node in group]
        sums = sorted(
            sum(
                sorted(_between(node, other) for other in numa_nodes if other is not node)[
                    : size - 1
                ]
            )
            for node in numa_nodes
        )
        return -(-sum(sums[:size]) // 2)

    def _counts(self, size: int) -> Iterator[list[tuple[tuple[NodeCapacity, ...], int]]]:
        groups = self.groups
        if len(groups) == 1:
            if size <= len(groups[0]):
                yield [(groups[0], size)]
            return

        def rest(
            place: int, left: int, after: int
        ) -> Iterator[list[tuple[tuple[NodeCapacity, ...], int]]]:
            if place == len(groups):
                if not left:
                    yield []
                return
            group = groups[place]
            behind = after - len(group)
            least = max(left - behind, int(group[0].index in self.required), 0)
            for count in range(min(len(group), left), least - 1, -1):
                for more in rest(place + 1, left - count, behind):
                    yield [(group, count), *more] if count else more

        yield from rest(0, size, sum(map(len, groups)))

    def _measured(self, counts: Sequence[tuple[tuple[NodeCapacity, ...], int]]) -> NodeSet:
        distance = 0
        near = 0
        for place, (group, count) in enumerate(counts):
            first = group[0]
            near += count * self.devices(first)
            if count > 1:
                distance += count * (count - 1) // 2 * _between(first, group[1])
            for other, number in counts[:place]:
                distance += count * number * _between(first, other[0])
        return NodeSet(distance, self.total_devices - near, tuple(counts))


def neighbourhood(
    numa_nodes: Sequence[NodeCapacity],
    *,
    devices: Callable[[NodeCapacity], int],
    total_devices: int,
    required: frozenset[int],
    likeness: Callable[[NodeCapacity], Hashable] = lambda _: None,
    is_flat: bool = False,
) -> Neighbourhood:
    """Sort ``nodes`` into groups of those that can be exchanged.

    Those are as far from all others, have as many devices, and are of the same ``likeness``.
    ``is_flat`` says that each is as far from any other.
    """
    groups: list[list[NodeCapacity]] = []
    columns = {} if is_flat else _columns(numa_nodes)
    for node in numa_nodes:
        for group in groups:
            first = group[0]
            if (
                not required & {node.index, first.index}
                and devices(node) == devices(first)
                and likeness(node) == likeness(first)
                and (is_flat or _are_exchangeable(node, first, columns))
            ):
                group.append(node)
                break
        else:
            groups.append([node])
    return Neighbourhood(tuple(tuple(group) for group in groups), devices, total_devices, required)


def _columns(numa_nodes: Sequence[NodeCapacity]) -> dict[int, tuple[int, ...]]:
    """Return the distances from every node of ``nodes`` to each, by index."""
    rows = [node.distances for node in numa_nodes]
    return {node.index: tuple(row[node.index] for row in rows) for node in numa_nodes}


def _are_exchangeable(
    node: NodeCapacity, other: NodeCapacity, columns: Mapping[int, tuple[int, ...]]
) -> bool:
    """Return whether two nodes are as far from each other as back, and from any other as far."""
    row = list(node.distances)
    row[node.index], row[other.index] = row[other.index], row[node.index]
    if tuple(row) != other.distances:
        return False
    differ = sum(map(ne, columns[node.index], columns[other.index]))
    there, back = node.distances[other.index], other.distances[node.index]
    own = (node.distances[node.index], other.distances[other.index])
    # Those two themselves differ: 10 to itself, something else to the other.
    return there == back and differ == (2 if own != (there, there) else 0)


def _between(node: NodeCapacity, other: NodeCapacity) -> int:
    """Return the distance there and back."""
    return node.distances[other.index] + other.distances[node.index]
