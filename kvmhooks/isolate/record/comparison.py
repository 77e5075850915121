"""One thing that is on record beside the host as it is: the truth of this moment."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

HELD: Final = "held"
UNSETTLED: Final = "unsettled"
OWED: Final = "owed"
DRIFTED: Final = "drifted"
FORCED: Final = "forced"
GONE: Final = "gone"
UNKNOWN: Final = "unknown"
UNMET: Final = "unmet"

RECONCILE: Final = "run `kvmhooks reconcile`"

STATES: Final[Mapping[str, str]] = {
    HELD: "as the VMs that live ask for it",
    UNSETTLED: "on its way, or the next call sees to it",
    OWED: "nobody asks for it any more, and it is yet to be given back",
    DRIFTED: "somebody else has changed it since, and a VM has not what it asks for",
    FORCED: "the kernel itself has made it so, or allows nothing else",
    GONE: "what was set is no more: an interrupt that was freed, a task that has ended",
    UNKNOWN: "it could not be read",
    UNMET: "not as VMs ask, and nobody has changed it: the kernel refuses it, or it is new",
}
"""Each state, and its meaning."""


class Comparison:
    """The values that a thing had, should have and has, and the VMs that ask for it."""

    __slots__ = (
        *("by", "key", "kind", "now", "place", "remedy", "should", "state", "unset", "was", "why"),
    )

    def __init__(
        self, key: str, place: str, *, by: Iterable[str] | None = None, kind: str = ""
    ) -> None:
        self.key = key
        """The key of a knob (``irq/24``), or of a resource on record."""
        self.kind = kind
        """The kind of a resource; empty for a setting."""
        self.place = place
        """The file that has it, or what else is set."""
        self.was: str | None = None
        """The value before, which it gets back; None for what is not known, as below."""
        self.should: str | None = None
        self.now: str | None = None
        self.by = None if by is None else [*by]
        """The names of the VMs that ask for it; None for what cannot be told."""
        self.state = UNKNOWN
        self.why = ""
        """The reason for the state, where there is more to say."""
        self.remedy = ""
        """The way to put it right."""
        self.unset = "none"
        """The word for an empty value, for people."""

    def judged(self, state: str, why: str = "", remedy: str = "") -> Comparison:
        """Take a state, and return the same."""
        self.state, self.why, self.remedy = state, why, remedy
        return self

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        names = ("was", "should", "now", "state", "why", "remedy", "by")
        return {"place": self.place, **{name: getattr(self, name) for name in names}}

    def __repr__(self) -> str:
        return f"Comparison({self.key!r}, {self.to_json()!r})"
