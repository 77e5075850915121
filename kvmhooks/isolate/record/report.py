"""The outcome of every knob in one run: the truth, not the intention."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

APPLIED: Final = "applied"
UNCHANGED: Final = "unchanged"
REFUSAL: Final = "refused"
FAILED: Final = "failed"


class Result:
    """The outcome of one knob."""

    __slots__ = ("key", "outcome", "value", "why")

    def __init__(self, key: str, outcome: str, value: str, why: str = "") -> None:
        self.key = key
        self.outcome = outcome
        self.value = value
        self.why = why

    def to_json(self) -> dict[str, str]:
        """Return JSON types."""
        return {name: getattr(self, name) for name in ("key", "outcome", "value", "why")}


class Report:
    """The results of one run; knobs not touched at all are only counted."""

    __slots__ = ("_rows", "is_pending", "is_withheld", "untouched")

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str, str]] = []
        self.untouched = 0
        self.is_pending = False
        """A daemon was told what it takes up within its own interval; until that is seen it stays
        on record.
        """
        self.is_withheld = False
        """The kernel has refused what stood there before us: that of a CPU that is offline, say."""

    @property
    def results(self) -> list[Result]:
        """The outcome of each knob, in the order in which they were judged."""
        return [Result(*row) for row in self._rows]

    def of(self, *outcomes: str) -> list[Result]:
        """Return the results with one of these outcomes."""
        return [Result(*row) for row in self._rows if row[1] in outcomes]

    @property
    def is_incomplete(self) -> bool:
        """Something could not be read, written or cleaned up; a refusal is final."""
        return bool(self.of(FAILED))

    def add(self, key: str, outcome: str, value: str, why: str = "") -> None:
        """Note what became of a knob."""
        self._rows.append((key, outcome, value, why))

    def __str__(self) -> str:
        outcomes = [outcome for _, outcome, _, _ in self._rows]
        counts = (
            f"{outcomes.count(outcome)} {outcome}"
            for outcome in (APPLIED, UNCHANGED, REFUSAL, FAILED)
        )
        return f"{', '.join(counts)}, {self.untouched} untouched"
