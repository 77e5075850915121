"""The ways to divide guest cells among nodes, and guest cores among cells: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmhooks.placement.request import CellAsk


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
                    part.cores,
                    part.floating,
                    part.units,
                    part.room,
                    -1 if part.node is None else part.node,
                    part.added,
                )
                for part in merged
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
    """Return ``total`` in parts as even as ``caps`` allow, each 1 at least, the largest first.

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
