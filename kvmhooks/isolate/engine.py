"""From the claims that live to the host as it should be, and back.

Every entry does the same: look at every knob, take over what others changed, compute the targets
from the originals and the claims, save all that before the first write, write, read back, save.
Interrupted anywhere, the next entry does it again; with no claim left the targets are the
originals.
"""

from __future__ import annotations

import errno

from kvmhooks.errors import IsolationError, ValueFormatError
from kvmhooks.isolate.knob import CGROUPS, TASKS
from kvmhooks.isolate.report import APPLIED, FAILED, REFUSAL, UNCHANGED, Report
from kvmhooks.isolate.state import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import Knob, View
    from kvmhooks.isolate.state import State
    from kvmhooks.isolate.store import Store

    Seen = tuple[Knob, Record, str, str]
    """A knob, what is known of it, what stands there now, and what should."""

    Change = tuple[int, Knob, Record, str]
    """One write that should be made: its order, where, what is known of it, and the value."""

GONE: Final = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO}
"""The thing is not there any more: an IRQ that was freed, a CPU that went offline, a task."""

REFUSED: Final = {errno.EIO, errno.EPERM, errno.EINVAL, errno.EBUSY, errno.EACCES, errno.EOPNOTSUPP}
"""The kernel does not let this be changed; which of them depends on its version and the knob."""


def converge(door: Door, store: Store, state: State, knobs: Iterable[Knob], view: View) -> Report:
    """Make the host as the live claims want it, and record every step before it is taken.

    What the kernel refuses is in the report. Raises ``IsolationError`` or ``OSError`` only when
    nothing can be recorded.
    """
    report = Report()
    try:
        seen = observe(door, knobs, state, view, report)
        wanted = changes(seen)
        record_intents(door, state, seen, wanted)
        store.save(state.to_text())
        refused = carry_out(door, wanted)
        verify(door, state, seen, refused, report)
    finally:
        door.let_go()
    drop_restored(state, kept=seen if view.held else ())
    if state.is_empty:
        store.clear()
    else:
        store.save(state.to_text())
    return report


def record_intents(
    door: Door, state: State, seen: Iterable[Seen], wanted: Iterable[Change]
) -> None:
    """Note every value that a write is about to leave, in-between ones included.

    What nothing of ours stands in, nor will, needs no record: its original is what stands there.
    """
    for knob, record, _, _ in seen:
        if record.ours is not None and not knob.is_slow:
            record.intent = None
    for knob, record, _, goal in seen:
        if knob.is_volatile:
            _intend(door, knob, record, goal)
    for _, knob, record, value in wanted:
        _intend(door, knob, record, value)
    drop_restored(state, kept=seen)


def _intend(door: Door, knob: Knob, record: Record, value: str) -> None:
    if record.ours is None and record.intent is None:  # the original stands there
        record.note = knob.note(door)
    record.intend(value)


def observe(
    door: Door, knobs: Iterable[Knob], state: State, view: View, report: Report
) -> list[Seen]:
    """Look at every knob, and bring the records up to date; nothing is written.

    A record is made for whatever is seen while claims live, taken over («rebased») when someone
    else changed the value, and dropped when the thing is gone.
    """
    seen: list[Seen] = []
    before, records = state.records, dict[str, Record]()
    for knob in knobs:
        record = before.get(knob.key)
        try:
            identity = knob.identity(door)
            current = knob.look(door)
        except (OSError, ValueFormatError) as error:
            if record is not None and not is_gone(error):
                records[knob.key] = record
                report.add(knob.key, FAILED, "", reason_of(error))
            continue
        if record is None or record.identity != identity:
            original = knob.first_original(current, before)
            record = Record(original, identity=identity)
            if original != current:  # it carries the mask of ours that it inherited
                record.ours, record.note = current, knob.note(door)
        elif current not in (record.ours, record.original):
            _rebase(knob, record, current, door)
        records[knob.key] = record
        seen.append((knob, record, current, knob.target(record.original, view)))
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


def changes(seen: Iterable[Seen]) -> list[Change]:
    """Every write that leads from what was seen to the goals, in order: pure."""
    found = [
        (order, knob, record, value)
        for knob, record, current, goal in seen
        if current != goal
        for order, value in knob.steps(current, goal)
    ]
    # What a daemon was told last and has not taken up would come later: it is told otherwise.
    found += [
        (knob.order, knob, record, goal)
        for knob, record, current, goal in seen
        if current == goal and knob.is_slow and record.intent is not None
    ]
    found.sort(key=lambda change: change[0])
    return found


def carry_out(door: Door, wanted: Iterable[Change]) -> dict[str, str]:
    """Make the changes; return the keys of those that could not be made, with the reason.

    A second pass takes up cpusets that depended on a change of another one.
    """
    refused: dict[str, str] = {}
    again: list[Change] = []
    is_late = False
    for change in wanted:
        order, knob, _, _ = change
        if is_late := is_late or door.is_late():
            refused[knob.key] = "out of time"
        elif not _write(door, change, refused) and CGROUPS <= order < TASKS:
            again.append(change)
    for change in again:
        _write(door, change, refused)
    return refused


def _write(door: Door, change: Change, refused: dict[str, str]) -> bool:
    """Make one change, unless what the kernel did meanwhile is the same."""
    _, knob, _, value = change
    try:
        if not knob.is_volatile or knob.read(door) != value:
            knob.write(door, value)
    except (OSError, IsolationError, ValueFormatError) as error:
        refused[knob.key] = reason_of(error)
        return False
    if refused:
        refused.pop(knob.key, None)
    return True


def verify(
    door: Door, state: State, seen: list[Seen], refused: dict[str, str], report: Report
) -> None:
    """Read back everything that was written or that a write may have changed.

    A knob that is back at its original is cleaned up after, and only then off the record. Tasks
    come last: at that systemd may drop a controller that nobody needs any more, and older kernels
    then set every task to its group's CPUs.
    """
    for is_volatile in (False, True):
        several = [one for one in seen if one[0].is_volatile is is_volatile]
        restored = [one for one in several if _is_restored(door, state, one, refused, report)]
        _finish(door, restored, report)


def _is_restored(
    door: Door, state: State, one: Seen, refused: dict[str, str], report: Report
) -> bool:
    """Whether a knob stands at its original again; what it stands at is put on record."""
    knob, record, current, goal = one
    if record.ours is None and record.intent is None:
        report.untouched += 1
        return False
    try:
        now = current if _is_settled(knob, record) else _read_back(door, one, refused)
    except (OSError, ValueFormatError) as error:
        if is_gone(error):
            del state.records[knob.key]
        else:
            report.add(knob.key, FAILED, current, reason_of(error))
        return False
    why = refused.get(knob.key, "")
    if why and knob.is_slow:
        report.add(knob.key, FAILED, now, why)
        return False  # what is on its way there stays on record
    _judge(door, one, now, why, report)
    if now == goal == record.original:
        return True
    if now == goal:
        record.ours, record.intent = now, None
    elif not knob.is_slow:
        _note_failure(one, now)
    return False


def _is_settled(knob: Knob, record: Record) -> bool:
    """Whether nothing was written there, and no write elsewhere can have changed it."""
    return record.intent is None and knob.order < CGROUPS and not knob.is_volatile


def _note_failure(one: Seen, now: str) -> None:
    """Record what a write that did not reach its goal has left, if anything of ours."""
    _, record, current, _ = one
    if now not in {current, record.original}:
        record.ours, record.intent = now, None
    elif now == record.original:
        record.ours = record.intent = None


def _read_back(door: Door, one: Seen, refused: dict[str, str]) -> str:
    """What stands there now; a task that another write has moved is put right first."""
    knob, record, _, goal = one
    now = knob.read_back(door)
    if knob.is_volatile and now != goal and knob.key not in refused:
        refused.update(carry_out(door, [(knob.order, knob, record, goal)]))
        now = knob.read(door)
    return now


def _judge(door: Door, one: Seen, now: str, why: str, report: Report) -> None:
    knob, record, current, goal = one
    if now == goal == current:
        report.add(knob.key, UNCHANGED, now)
    elif now == goal:
        report.add(knob.key, APPLIED, now, knob.remark(door, record))
    elif knob.is_slow:
        report.add(knob.key, APPLIED, goal, "told; it takes effect within its own interval")
        report.is_pending = True
    elif not why or why in _REFUSED_NAMES or why == knob.refusal:
        report.add(knob.key, REFUSAL, now, why or f"it became {now!r} instead of {goal!r}")
    else:
        report.add(knob.key, FAILED, now, why)


def _finish(door: Door, restored: list[Seen], report: Report) -> None:
    """Clean up after what stands at its original again; a record goes last."""
    done: list[Record] = []
    is_reload_due = False
    for knob, record, current, _ in restored:
        try:
            is_reload_due |= knob.finish(door, record)
        except (OSError, IsolationError) as error:
            report.add(knob.key, FAILED, current, reason_of(error))
        else:
            done.append(record)
    systemd = door.systemd() if is_reload_due else None
    if systemd is not None:
        try:
            with systemd:
                systemd.reload()
        except IsolationError as error:  # all is right but for its list of the files that it read
            report.add("systemd/reload", REFUSAL, "", f"{error}: run `systemctl daemon-reload`")
    for record in done:
        record.ours = record.intent = None


def drop_restored(state: State, kept: Iterable[Seen] = ()) -> None:
    """Forget what nothing of ours stands in any more.

    But for what another's write may change: older kernels forget a task's mask whenever a group is
    changed, by systemd too, and then only its record tells what its owner wanted.
    """
    volatile = {knob.key for knob, _, _, _ in kept if knob.is_volatile}
    state.records = {
        key: record
        for key, record in state.records.items()
        if record.ours is not None or record.intent is not None or key in volatile
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
