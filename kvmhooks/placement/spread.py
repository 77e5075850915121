"""So many equal things over places that hold some each: as few places as can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Place = TypeVar("Place")


def fewest(wanted: int, capacity: Mapping[Place, int]) -> dict[Place, int] | None:
    """How many each place takes, or None when all of them together do not hold ``wanted``.

    The largest are filled first, which takes the fewest places; the last one is the smallest that
    holds what is left, so that the largest blocks stay free. Equal ones are taken in order.
    """
    left = {place: count for place, count in capacity.items() if count > 0}
    if sum(left.values()) < wanted:
        return None
    taken: dict[Place, int] = {}
    while wanted:
        enough = [place for place, count in left.items() if count >= wanted]
        place = min(enough, key=left.__getitem__) if enough else max(left, key=left.__getitem__)
        taken[place] = min(wanted, left.pop(place))
        wanted -= taken[place]
    return taken
