"""From the claims that live to the host as it should be, and back.

Every entry does the same: look at every knob, take over what others changed, compute the targets
from the originals and the claims, save all that before the first write, write, read back, save.
Interrupted anywhere, the next entry does it again; with no claim left the targets are the
originals.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from kvmhooks.errors import IsolationError, ValueFormatError
from kvmhooks.isolate.knob import CGROUPS, TASKS
from kvmhooks.isolate.state import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import Knob, View
    from kvmhooks.isolate.state import State
    from kvmhooks.isolate.store import Store

GONE: Final = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO}
"""The thing is not there any more: an IRQ that was freed, a CPU that went offline, a task."""

REFUSED: Final = {errno.EIO, errno.EPERM, errno.EINVAL, errno.EBUSY, errno.EACCES, errno.EOPNOTSUPP}
"""The kernel does not let this be changed; which of them depends on its version and the knob."""

RELOAD: Final = 5.0
"""Seconds that systemd may take to read its units again, though the budget be spent."""

APPLIED: Final = "applied"
UNCHANGED: Final = "unchanged"
REFUSAL: Final = "refused"
FAILED: Final = "failed"


class Result(NamedTuple):
    """What became of one knob: the truth, not the intention."""

    key: str
    outcome: str
    value: str
    why: str = ""


class Change(NamedTuple):
    """One write that should be made."""

    order: int
    knob: Knob
    value: str


class Seen(NamedTuple):
    """A knob as it was found, and where it should go."""

    knob: Knob
    current: str
    goal: str
    is_restoring: bool
    """Whether the goal is that nothing of ours remains."""


class Report:
    """The results of one run; what was not touched at all is only counted."""

    __slots__ = ("results", "untouched")

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.untouched = 0

    def of(self, *outcomes: str) -> list[Result]:
        """The results with one of these outcomes."""
        return [result for result in self.results if result.outcome in outcomes]

    @property
    def is_incomplete(self) -> bool:
        """Whether something could not be read, written or cleaned up; a refusal is final."""
        return bool(self.of(FAILED))

    def add(self, key: str, outcome: str, value: str, why: str = "") -> None:
        """Note what became of a knob."""
        self.results.append(Result(key, outcome, value, why))

    def __str__(self) -> str:
        counts = (f"{len(self.of(one))} {one}" for one in (APPLIED, UNCHANGED, REFUSAL, FAILED))
        return f"{', '.join(counts)}, {self.untouched} untouched"


def converge(door: Door, store: Store, state: State, knobs: Iterable[Knob], view: View) -> Report:
    """Make the host as the live claims want it, and record every step before it is taken.

    What the kernel refuses is in the report. Raises ``IsolationError`` or ``OSError`` only when
    nothing can be recorded.
    """
    report = Report()
    seen = observe(door, knobs, state, view, report)
    wanted = changes(seen)
    record_intents(state, seen, wanted)
    store.save(state.to_text())
    refused = carry_out(door, wanted)
    verify(door, state, seen, refused, report)
    if not view.held:
        drop_restored(state)
    if state.is_empty:
        store.clear()
    else:
        store.save(state.to_text())
    return report


def record_intents(state: State, seen: Iterable[Seen], wanted: Iterable[Change]) -> None:
    """Note every value that a write is about to leave, in-between ones included."""
    for record in state.records.values():
        record.intent = None if record.ours is not None else record.intent
    for one in seen:
        if one.knob.is_volatile:
            state.records[one.knob.key].intend(one.goal)
    for change in wanted:
        state.records[change.knob.key].intend(change.value)


def observe(
    door: Door, knobs: Iterable[Knob], state: State, view: View, report: Report
) -> list[Seen]:
    """Look at every knob, and bring the records up to date; nothing is written.

    A record is made for whatever is seen while claims live, taken over («rebased») when someone
    else changed the value, and dropped when the thing is gone.
    """
    seen: list[Seen] = []
    records: dict[str, Record] = {}
    for knob in knobs:
        record = state.records.get(knob.key)
        try:
            identity = knob.identity(door)
            current = knob.read(door)
        except (OSError, ValueFormatError) as error:
            if record is not None and not is_gone(error):
                records[knob.key] = record
                report.add(knob.key, FAILED, "", reason_of(error))
            continue
        if record is None or record.identity != identity:
            original = knob.first_original(current, state.records)
            record = Record(original, identity=identity, note=knob.note(door))
            if original != current:
                record.ours = current  # it carries the mask of ours that it inherited
        else:
            _rebase(knob, record, current, door)
        records[knob.key] = record
        seen.append(_aim(knob, record, current, view))
    state.records = records
    return seen


def _rebase(knob: Knob, record: Record, current: str, door: Door) -> None:
    """Take over what someone else wrote: it is the original from now on."""
    if record.knows(current):
        if current != record.original:
            record.ours = current  # a write was interrupted after it was made
        return
    if knob.is_forced(current, door):
        return
    record.original = current
    record.ours = record.intent = None
    record.note = knob.note(door)


def _aim(knob: Knob, record: Record, current: str, view: View) -> Seen:
    """Where a knob should go."""
    target = knob.target(record.original, view)
    return Seen(knob, current, target, is_restoring=target == record.original)


def changes(seen: Iterable[Seen]) -> list[Change]:
    """Every write that leads from what was seen to the goals, in order: pure."""
    found = (
        Change(order, one.knob, value)
        for one in seen
        for order, value in one.knob.steps(one.current, one.goal)
    )
    return sorted(found, key=lambda change: change.order)


def carry_out(door: Door, wanted: Iterable[Change]) -> dict[str, str]:
    """Make the changes; return the keys of those that could not be made, with the reason.

    A second pass takes up cpusets that depended on a change of another one.
    """
    refused: dict[str, str] = {}
    again: list[Change] = []
    for change in wanted:
        if door.is_late():
            refused[change.knob.key] = "out of time"
        elif not _write(door, change, refused) and CGROUPS <= change.order < TASKS:
            again.append(change)
    for change in again:
        _write(door, change, refused)
    return refused


def _write(door: Door, change: Change, refused: dict[str, str]) -> bool:
    """Make one change, unless what the kernel did meanwhile is the same."""
    knob = change.knob
    try:
        if not knob.is_volatile or knob.read(door) != change.value:
            knob.write(door, change.value)
    except (OSError, IsolationError, ValueFormatError) as error:
        refused[knob.key] = reason_of(error)
        return False
    refused.pop(knob.key, None)
    return True


def verify(
    door: Door, state: State, seen: list[Seen], refused: dict[str, str], report: Report
) -> None:
    """Read back everything that was written or that a write may have changed.

    A knob that is back at its original is cleaned up after, and only then off the record. Tasks
    come last: when systemd is told, it may drop a controller that nobody needs any more, and older
    kernels then set every task to its group's CPUs.
    """
    is_settled = True
    for is_volatile in (False, True):
        several = [one for one in seen if one.knob.is_volatile is is_volatile]
        restored = [one for one in several if _is_restored(door, state, one, refused, report)]
        if is_settled:
            is_settled = _finish(door, state, restored, report)


def _is_restored(
    door: Door, state: State, one: Seen, refused: dict[str, str], report: Report
) -> bool:
    """Whether a knob stands at its original again; what it stands at is put on record."""
    key = one.knob.key
    record = state.records[key]
    if record.intent is None and record.ours is None:
        report.untouched += 1
        return False
    try:
        now = _read_back(door, one, refused)
    except (OSError, ValueFormatError) as error:
        if is_gone(error):
            del state.records[key]
        else:
            report.add(key, FAILED, one.current, reason_of(error))
        return False
    _judge(one, now, refused.get(key, ""), report, door)
    if now == one.goal and one.is_restoring:
        return True
    if not (one.knob.is_slow and key not in refused and now != one.goal):
        _note_outcome(one, record, now)
    return False


def _note_outcome(one: Seen, record: Record, now: str) -> None:
    """Record what a write has left, if it has left anything of ours."""
    if now == one.goal or now not in {one.current, record.original}:
        record.ours, record.intent = now, None
    elif now == record.original:
        record.ours = record.intent = None


def _read_back(door: Door, one: Seen, refused: dict[str, str]) -> str:
    """What stands there now; a task that another write has moved is put right first."""
    now = one.knob.read(door)
    if one.knob.is_volatile and now != one.goal and one.knob.key not in refused:
        refused.update(carry_out(door, [Change(one.knob.order, one.knob, one.goal)]))
        now = one.knob.read(door)
    return now


def _judge(one: Seen, now: str, why: str, report: Report, door: Door) -> None:
    key = one.knob.key
    if now == one.goal:
        outcome = UNCHANGED if one.current == now else APPLIED
        report.add(key, outcome, now, one.knob.remark(door, now))
    elif one.knob.is_slow and not why:
        report.add(key, APPLIED, one.goal, "told; it takes effect within its own interval")
    elif not why or why in _REFUSED_NAMES:
        report.add(key, REFUSAL, now, why or f"it became {now!r} instead of {one.goal!r}")
    else:
        report.add(key, FAILED, now, why)


def _finish(door: Door, state: State, restored: list[Seen], report: Report) -> bool:
    """Clean up after what stands at its original again; a record goes last.

    Tell whether systemd, where it had to, has taken notice. Where it has not, the records that need
    it stay, and the next entry tells it again.
    """
    done: list[Record] = []
    untold: list[Record] = []
    for one in restored:
        record = state.records[one.knob.key]
        try:
            (untold if one.knob.finish(door, record) else done).append(record)
        except (OSError, IsolationError) as error:
            report.add(one.knob.key, FAILED, one.current, reason_of(error))
    systemd = door.systemd(max(RELOAD, door.remaining())) if untold else None
    if systemd is not None:
        try:
            with systemd:
                systemd.reload()
        except IsolationError as error:  # the sets are right; only its memory of them is late
            report.add("systemd/reload", FAILED, "", str(error))
        else:
            done += untold
            untold = []
    for record in done:
        record.ours = record.intent = None
    return not untold


def drop_restored(state: State) -> None:
    """Forget what nothing of ours stands in any more."""
    state.records = {
        key: record
        for key, record in state.records.items()
        if record.ours is not None or record.intent is not None
    }


def is_gone(error: Exception) -> bool:
    """Whether an error says that the thing is not there any more."""
    return isinstance(error, OSError) and error.errno in GONE


def reason_of(error: Exception) -> str:
    """The errno's name, or what the error says."""
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, str(error.errno))
    return str(error) or type(error).__name__


_REFUSED_NAMES: Final = {errno.errorcode[number] for number in REFUSED}
