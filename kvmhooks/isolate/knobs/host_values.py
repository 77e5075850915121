"""Files with one value for the whole host: the first claim that asks has the say."""

from __future__ import annotations

from kvmhooks.isolate.engine.knob import PolicyKnob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kvmhooks.isolate.engine.knob import Knob, View
    from kvmhooks.isolate.record.state import Record


class Row:
    """A file, the setting that it has, and where that is described."""

    __slots__ = ("path", "setting", "source", "spelling")

    def __init__(
        self, setting: str, path: str, source: str, spelling: Mapping[str, str] | None = None
    ) -> None:
        self.setting = setting
        self.path = path
        self.source = source
        """The kernel's description of it."""
        self.spelling = spelling


def knobs(rows: Iterable[Row], view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield what a claim asks for, and what is on record from one that did."""
    for row in rows:
        key = f"{row.setting}/{row.path.rsplit('/', 1)[-1]}"
        if key in records or view.requested(row.setting):
            yield PolicyKnob(key, row.path, setting=row.setting, spelling=row.spelling)
