"""The pauses of a follower, so that events in any number cost next to nothing.

An event that comes alone is seen to at once. While there is no end of it, the pauses grow, until
the work takes no more than its share of a CPU; after a time without any they begin anew.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SHARE: Final = 0.004
"""The share of a CPU that one kind of work may take; a follower has two, and has to begin each."""


class Pace:
    """The pauses between rounds of one kind of work, by the clock of ``System.now``."""

    __slots__ = ("_factor", "_first", "_longest", "_pause", "due")

    def __init__(self, first: float, factor: int, longest: float) -> None:
        self._first = first
        self._factor = factor
        """The factor from the last pause to the next."""
        self._longest = longest
        """Seconds: so long is paused at the most, whatever the work costs."""
        self._pause = 0.0
        self.due = 0.0
        """When the next round may begin."""

    def worked(self, begun: float, ended: float, spent: float) -> None:
        """Note a round of work, and how many seconds of a CPU it took."""
        is_alone = begun >= self.due + self._pause
        most = min(max(spent / SHARE, self._first), self._longest)
        self._pause = self._first if is_alone else min(self._factor * self._pause, most)
        self.due = ended + self._pause
