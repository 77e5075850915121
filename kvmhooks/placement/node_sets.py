"""Which nodes a VM uses: sets of them, the nearest to each other first.

The distance of a set and its remote devices depend on nothing but the set, so that sets come in the
order of the objective, and which cell is where follows. Nodes that are as far from every other node
(the nodes of one socket, say) are told by how many of them there are, not by which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import ne
from typing import NamedTuple

from attrs import frozen

from kvmhooks.placement.ground import Site


class NodeSet(NamedTuple):
    """So many nodes of each of some groups of nodes."""

    distance: int
    remote_devices: int
    parts: tuple[tuple[tuple[Site, ...], int], ...]
    """(the nodes of a group, how many of them)."""


@frozen(eq=False)
class Neighbourhood:
    """The nodes that may be used."""

    groups: tuple[tuple[Site, ...], ...]
    devices: Callable[[Site], int]
    """How many devices whose locality is preferred a node has."""
    total_devices: int
    required: frozenset[int]
    """Indices of nodes that must be used."""

    def sets(self, size: int, most: int) -> list[list[NodeSet]] | None:
        """All sets of ``size`` nodes, those alike in one list, the best list first.

        None when there are more than ``most``.
        """
        found: list[NodeSet] = []
        for counts in self._counts(size):
            found.append(self._measured(counts))
            if len(found) > most:
                return None
        found.sort(key=lambda one: one[:2])
        return [list(alike) for _, alike in groupby(found, key=lambda one: one[:2])]

    def near_sets(self, size: int) -> list[list[NodeSet]]:
        """Some sets of ``size``: around each node those nearest, as ``sets`` gives them."""
        sites = [site for group in self.groups for site in group]
        found = {}
        for start in sites:
            chosen = {index: site for site in sites if (index := site.index) in self.required}
            chosen.setdefault(start.index, start)
            while len(chosen) < size:
                rest = [site for site in sites if site.index not in chosen]
                nearest = min(
                    rest,
                    key=lambda site: (
                        sum(_between(site, other) for other in chosen.values()),
                        site.index,
                    ),
                )
                chosen[nearest.index] = nearest
            if len(chosen) == size:
                ordered = tuple(chosen[index] for index in sorted(chosen))
                found[ordered] = self._measured([((site,), 1) for site in ordered])
        some = sorted(found.values(), key=lambda one: one[:2])
        return [list(alike) for _, alike in groupby(some, key=lambda one: one[:2])]

    def least_distance(self, size: int) -> int:
        """No set of ``size`` nodes has less distance than this."""
        sites = [site for group in self.groups for site in group]
        sums = sorted(
            sum(sorted(_between(site, other) for other in sites if other is not site)[: size - 1])
            for site in sites
        )
        return -(-sum(sums[:size]) // 2)

    def _counts(self, size: int) -> Iterator[list[tuple[tuple[Site, ...], int]]]:
        groups = self.groups
        if len(groups) == 1:
            if size <= len(groups[0]):
                yield [(groups[0], size)]
            return

        def rest(place: int, left: int, after: int) -> Iterator[list[tuple[tuple[Site, ...], int]]]:
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

    def _measured(self, counts: Sequence[tuple[tuple[Site, ...], int]]) -> NodeSet:
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
    sites: Sequence[Site],
    *,
    devices: Callable[[Site], int],
    total_devices: int,
    required: frozenset[int],
    likeness: Callable[[Site], Hashable] = lambda _: None,
    is_flat: bool = False,
) -> Neighbourhood:
    """Sort ``sites`` into groups of those that can be exchanged.

    Those are as far from all others, have as many devices, and are of the same ``likeness``.
    ``is_flat`` says that each is as far from any other.
    """
    groups: list[list[Site]] = []
    columns = {} if is_flat else _columns(sites)
    for site in sites:
        for group in groups:
            first = group[0]
            if (
                not required & {site.index, first.index}
                and devices(site) == devices(first)
                and likeness(site) == likeness(first)
                and (is_flat or _are_exchangeable(site, first, columns))
            ):
                group.append(site)
                break
        else:
            groups.append([site])
    return Neighbourhood(tuple(tuple(group) for group in groups), devices, total_devices, required)


def _columns(sites: Sequence[Site]) -> dict[int, tuple[int, ...]]:
    """The distances from every site of ``sites`` to each, by index."""
    rows = [site.distances for site in sites]
    return {site.index: tuple(row[site.index] for row in rows) for site in sites}


def _are_exchangeable(one: Site, other: Site, columns: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether two nodes are as far from each other as back, and from any other as far."""
    row = list(one.distances)
    row[one.index], row[other.index] = row[other.index], row[one.index]
    if tuple(row) != other.distances:
        return False
    differ = sum(map(ne, columns[one.index], columns[other.index]))
    there, back = one.distances[other.index], other.distances[one.index]
    own = (one.distances[one.index], other.distances[other.index])
    # Those two themselves differ: 10 to itself, something else to the other.
    return there == back and differ == (2 if own != (there, there) else 0)


def _between(one: Site, other: Site) -> int:
    """There and back."""
    return one.distances[other.index] + other.distances[one.index]
