"""How many of a VM's equal NUMA cells each node takes: as few nodes as can hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvmhooks.placement.ground import Field


def spread(cells: int, capacity: Mapping[int, int], fields: Sequence[Field]) -> list[Field] | None:
    """The field of each of the ``cells``, or None when they do not fit.

    ``capacity`` says how many cells each field (by its place in ``fields``) can take. The largest
    are filled first, which takes the fewest nodes; the last one is the smallest that still holds
    what is left, so that the largest blocks stay free. Equal ones are taken in order.
    """
    chosen: list[Field] = []
    left = dict(capacity)
    while len(chosen) < cells:
        missing = cells - len(chosen)
        enough = [place for place, count in left.items() if count >= missing]
        if enough:
            place = min(enough, key=lambda place: (left[place], place))
        else:
            place = max(left, key=lambda place: (left[place], -place), default=-1)
        taken = min(missing, left.pop(place, 0))
        if not taken:
            return None
        chosen += [fields[place]] * taken
    return chosen
