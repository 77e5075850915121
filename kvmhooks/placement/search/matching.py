"""So many cells onto as many places or more, one each, at the least cost."""

from __future__ import annotations

from collections.abc import Sequence


def is_possible(allowed: Sequence[int]) -> bool:
    """Return whether each row can have a column of its own; a row's columns are a mask.

    Augmenting paths, as Kuhn's.
    """
    owner: dict[int, int] = {}

    def assign(row: int, seen: list[int]) -> bool:
        columns = allowed[row] & ~seen[0]
        while columns:
            bit = columns & -columns
            seen[0] |= bit
            holder = owner.get(bit)
            if holder is None or assign(holder, seen):
                owner[bit] = row
                return True
            columns = allowed[row] & ~seen[0]
        return False

    return all(assign(row, [0]) for row in range(len(allowed)))


def cheapest(costs: Sequence[Sequence[int | None]]) -> list[int] | None:
    """Return the column of each row, all different, with the least sum of costs, or None.

    There are at least as many columns as rows. None is a pair that must not be.
    """
    nearest = _nearest(costs)
    if len(set(nearest)) == len(costs):
        return nearest
    masks = [
        sum(1 << column for column, cost in enumerate(row) if cost is not None) for row in costs
    ]
    if not is_possible(masks):
        return None
    never = 1 + 2 * sum(max(cost for cost in row if cost is not None) for row in costs)
    lines = [[never if cost is None else cost for cost in row] for row in costs]
    chosen = _hungarian(lines, never << 64)
    assert all(costs[row][column] is not None for row, column in enumerate(chosen))
    return chosen


def _nearest(costs: Sequence[Sequence[int | None]]) -> list[int]:
    """Return the first column that costs each row least; only those before a row that has none."""
    columns = []
    for row in costs:
        allowed = [cost for cost in row if cost is not None]
        if not allowed:
            break
        columns.append(row.index(min(allowed)))
    return columns


def _hungarian(costs: Sequence[Sequence[int]], infinite: int) -> list[int]:
    """Apply the Hungarian method with potentials, row by row; row and column 0 are its own."""
    columns = len(costs[0])
    of_row = [0] * (len(costs) + 1)
    of_column = [0] * (columns + 1)
    holder = [0] * (columns + 1)
    for row in range(1, len(costs) + 1):
        holder[0] = row
        at = 0
        least = [infinite] * (columns + 1)
        before = [0] * (columns + 1)
        done = [False] * (columns + 1)
        while holder[at]:
            done[at] = True
            line, base = costs[holder[at] - 1], of_row[holder[at]]
            for column in range(1, columns + 1):
                reduced = line[column - 1] - base - of_column[column]
                if not done[column] and reduced < least[column]:
                    least[column], before[column] = reduced, at
            rest = [column for column in range(1, columns + 1) if not done[column]]
            after = min(rest, key=least.__getitem__)
            step = least[after]
            for column in range(columns + 1):
                if done[column]:
                    of_row[holder[column]] += step
                    of_column[column] -= step
                else:
                    least[column] -= step
            at = after
        while at:
            holder[at] = holder[before[at]]
            at = before[at]
    chosen = [0] * len(costs)
    for column in range(1, columns + 1):
        if holder[column]:
            chosen[holder[column] - 1] = column - 1
    return chosen
