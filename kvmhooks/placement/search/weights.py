"""Several numbers as one, so that sums and comparisons of all are one machine operation.

The lexicographic order of the tuples is the order of the packed numbers while every part stays
below 2^40, which sums of CPUs, pages and their squares do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvmhooks.placement.search.objective import WEIGHED

WIDTH: Final = 40
_MASK: Final = (1 << WIDTH) - 1

FIELDS: Final = (*WEIGHED, "moved_mib", "moved_cores", "tie")
"""The most important first. Not of the score: how much moves, and the lowest numbers."""

_SHIFT: Final = {name: WIDTH * (len(FIELDS) - 1 - place) for place, name in enumerate(FIELDS)}

UNIT: Final = {name: 1 << shift for name, shift in _SHIFT.items()}
"""One of each field, to be multiplied and added."""


def part(packed: int, name: str) -> int:
    """Return one field of a packed number."""
    return packed >> _SHIFT[name] & _MASK


def parts(packed: Iterable[int], name: str) -> list[int]:
    """Return one field of each of some packed numbers."""
    shift = _SHIFT[name]
    return [number >> shift & _MASK for number in packed]
