"""From the claims that live to the host as it should be, and back.

Every transaction does the same: look at every knob, take over what others changed, compute the
targets from the originals and the claims, save all that before the first write, write, read back,
save. Interrupted anywhere, the next transaction does it again; with no claim left the targets are
the originals.

A look is never broken off, since a task that was not looked at could lose the mask that its owner
gave it. So writing may take at least as long as looking took, and the first write is always made:
with any budget, each transaction comes nearer to the goal.
"""

from __future__ import annotations

import errno

from kvmhooks.errors import IsolationError, ValueFormatError
from kvmhooks.isolate.engine.knob import CGROUPS, TASKS
from kvmhooks.isolate.record.report import APPLIED, FAILED, REFUSAL, UNCHANGED, Report
from kvmhooks.isolate.record.state import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from kvmhooks.isolate.engine.knob import Knob, View
    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.system.system import System

    Seen = tuple[Knob, Record, str, str]
    """A knob, what is known of it, what stands there now, and what should."""

    Change = tuple[int, Knob, Record, str]
    """One write that should be made: its order, where, what is known of it, and the value."""

GONE: Final = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO}
"""The thing is not there any more: an IRQ that was freed, a CPU that went offline, a task."""

REFUSED: Final = {errno.EIO, errno.EPERM, errno.EINVAL, errno.EBUSY, errno.EACCES, errno.EOPNOTSUPP}
"""The kernel does not let this be changed; which of them depends on its version and the knob."""

OUT_OF_TIME: Final = "out of time"


def converge(
    system: System, store: Store, state: State, stages: Iterable[Sequence[Knob]], view: View
) -> Report:
    """Make the host as the live claims want it, and record every step before it is taken.

    One stage is done before the next is looked at. The kernel's refusals are in the report. Raises
    ``IsolationError`` or ``OSError`` only when nothing can be recorded.
    """
    report = Report()
    found: set[str] = set()
    seen: list[Seen] = []
    for knobs in stages:
        if system.is_late() and report.of(APPLIED):
            report.add(f"{len(state.records.keys() - found)} others", FAILED, "", OUT_OF_TIME)
            break
        found.update(knob.key for knob in knobs)
        seen += _carry(system, store, state, knobs, view, report)
    else:
        state.records = {key: record for key, record in state.records.items() if key in found}
    drop_restored(state, kept=seen if view.held else ())
    if state.is_empty:
        store.clear()
    else:
        store.save(state.to_text())
    return report


def _carry(
    system: System, store: Store, state: State, knobs: Iterable[Knob], view: View, report: Report
) -> list[Seen]:
    """Look at a stage, and make of it what should be."""
    begun = system.now()
    try:
        seen = observe(system, knobs, state, view, report)
        system.prolong(system.now() - begun)
        make(system, store, state, seen, view, report)
    finally:
        system.let_go()
    return seen


def make(
    system: System, store: Store, state: State, seen: list[Seen], view: View, report: Report
) -> None:
    """Make of what was seen what should be: recorded before the first write, and read back."""
    wanted = changes(seen)
    record_intents(system, state, seen, wanted, view)
    store.save(state.to_text())
    verify(system, state, seen, carry_out(system, wanted), report)


def record_intents(
    system: System, state: State, seen: Iterable[Seen], wanted: Iterable[Change], view: View
) -> None:
    """Note every value that a write is about to leave, in-between ones included.

    CPUs that are left out because they are offline may be back when it is read next.

    A knob without a value of ours, now or later, needs no record: its original is its value.
    """
    for knob, record, _, _ in seen:
        if record.ours is not None and not knob.is_slow:
            record.intent = None
    for knob, record, _, goal in seen:
        if knob.is_volatile:
            _intend(system, knob, record, goal, view)
    for _, knob, record, value in wanted:
        _intend(system, knob, record, value, view)
    forget(state, seen)


def _intend(system: System, knob: Knob, record: Record, value: str, view: View) -> None:
    if record.ours is None and record.intent is None:  # the original stands there
        record.note = knob.note(system)
    record.intend(value)
    if knob.is_written_cut:
        record.intend(view.present(value))


def observe(
    system: System, knobs: Iterable[Knob], state: State, view: View, report: Report
) -> list[Seen]:
    """Look at every knob, and bring the records up to date; nothing is written.

    A record is made for whatever is seen while claims live, taken over («rebased») when someone
    else changed the value, and dropped when the thing is gone.
    """
    seen: list[Seen] = []
    before, records = state.records, dict(state.records)
    for knob in knobs:
        record = before.get(knob.key)
        try:
            identity = knob.identity(system)
            current = knob.look(system)
        except (OSError, ValueFormatError) as error:
            if is_gone(error):
                records.pop(knob.key, None)
            elif record is not None:
                report.add(knob.key, FAILED, "", reason_of(error))
            continue
        if record is None or record.identity != identity:
            original = knob.first_original(current, before)
            record = Record(original, identity=identity)
            if original != current:  # it carries the mask of ours that it inherited
                record.ours, record.note = current, knob.note(system)
        elif current not in (record.ours, record.original):
            _rebase(knob, record, current, view, system)
        records[knob.key] = record
        seen.append((knob, record, current, knob.target(record.original, view)))
    state.records = records
    return seen


def _rebase(knob: Knob, record: Record, current: str, view: View, system: System) -> None:
    """Take over what someone else wrote: it is the original from now on."""
    if record.knows(current):
        if current != record.original:
            record.ours = current  # a write was interrupted after it was made
        return
    if knob.is_forced(current, system):
        return
    if knob.loses_offline and _is_by_kernel(knob, record, current, view, system):
        return
    record.original = current
    record.ours = record.intent = None


def _is_by_kernel(knob: Knob, record: Record, current: str, view: View, system: System) -> bool:
    """Tell whether a list is so because of CPUs that are offline.

    It may be the original or ours without them; of a write of ours that was interrupted after it
    was made that is noted, since it will not look like one when they are online again. Or it has
    them, where whatever else it may have is the kernel's: a task whose group has no CPU set any
    more gets all possible CPUs (``cpuset_attach()``, kernel/cgroup/cpuset.c).
    """
    if current == view.present(record.original):
        return True
    ours = filter(None, (record.ours, *(record.intent or "").split("|")))
    if any(current == view.present(mask) for mask in ours):
        record.ours = current
        return True
    return knob.is_forced(view.present(current), system)


def changes(seen: Iterable[Seen]) -> list[Change]:
    """Return every write that leads from what was seen to the goals, in order: pure."""
    found = [
        (order, knob, record, value)
        for knob, record, current, goal in seen
        if current != goal
        for order, value in knob.steps(current, goal)
    ]
    # A daemon would still take up the value that it was told last: it is told otherwise.
    found += [
        (knob.order, knob, record, goal)
        for knob, record, current, goal in seen
        if current == goal and knob.is_slow and record.intent is not None
    ]
    found.sort(key=lambda change: change[0])
    return found


def carry_out(system: System, wanted: Iterable[Change]) -> dict[str, str]:
    """Make the changes; return the keys of those that could not be made, with the reason.

    The first one is made however late it is. A second pass takes up cpusets that depended on a
    change of another one.
    """
    refused: dict[str, str] = {}
    again: list[Change] = []
    is_late = False
    for number, change in enumerate(wanted):
        knob = change[1]
        if is_late := is_late or (number > 0 and system.is_late()):
            refused[knob.key] = OUT_OF_TIME
        elif not _write(system, change, refused) and CGROUPS <= knob.order < TASKS:
            again.append(change)
    for change in again:
        _write(system, change, refused)
    return refused


def _write(system: System, change: Change, refused: dict[str, str]) -> bool:
    """Make one change, unless what the kernel did meanwhile is the same."""
    _, knob, _, value = change
    try:
        if not knob.is_volatile or knob.read(system) != value:
            knob.write(system, value)
    except (OSError, IsolationError, ValueFormatError) as error:
        refused[knob.key] = reason_of(error)
        return False
    if refused:
        refused.pop(knob.key, None)
    return True


def verify(
    system: System, state: State, seen: list[Seen], refused: dict[str, str], report: Report
) -> None:
    """Read back everything that was written or that a write may have changed.

    A knob that is back at its original is cleaned up after, and only then off the record. Tasks
    come last: at that systemd may drop a controller that nobody needs any more, and older kernels
    then set every task to its group's CPUs.
    """
    for is_volatile in (False, True):
        several = [judged for judged in seen if judged[0].is_volatile is is_volatile]
        restored = [
            judged for judged in several if _is_restored(system, state, judged, refused, report)
        ]
        _finish(system, restored, report)


def _is_restored(
    system: System, state: State, judged: Seen, refused: dict[str, str], report: Report
) -> bool:
    """Put a knob's value on record, and return whether it stands at its original again."""
    knob, record, current, goal = judged
    if record.ours is None and record.intent is None:
        report.untouched += 1
        return False
    try:
        now = current if _is_settled(knob, record) else _read_back(system, judged, refused)
    except (OSError, ValueFormatError) as error:
        if is_gone(error):
            del state.records[knob.key]
        else:
            report.add(knob.key, FAILED, current, reason_of(error))
        return False
    why = refused.get(knob.key, "")
    if why and knob.is_slow:
        report.add(knob.key, FAILED, now, why)
        return False  # a knob on its way there stays on record
    _judge(system, judged, now, why, report)
    if now == goal == record.original:
        return True
    if now == goal:
        record.ours, record.intent = now, None
    elif not knob.is_slow:
        _note_failure(judged, now)
    return False


def _is_settled(knob: Knob, record: Record) -> bool:
    """Return whether nothing was written there, and no write elsewhere can have changed it."""
    return record.intent is None and knob.order < CGROUPS and not knob.is_volatile


def _note_failure(judged: Seen, now: str) -> None:
    """Record what a write that did not reach its goal has left, if anything of ours."""
    _, record, current, _ = judged
    if now not in {current, record.original}:
        record.ours, record.intent = now, None
    elif now == record.original:
        record.ours = record.intent = None


def _read_back(system: System, judged: Seen, refused: dict[str, str]) -> str:
    """Return the value there now; a task that another write has moved is put right first."""
    knob, record, _, goal = judged
    now = knob.read_back(system)
    if knob.is_volatile and now != goal and knob.key not in refused:
        refused.update(carry_out(system, [(knob.order, knob, record, goal)]))
        now = knob.read(system)
    return now


def _judge(system: System, judged: Seen, now: str, why: str, report: Report) -> None:
    knob, record, current, goal = judged
    if now == goal == current:
        report.add(knob.key, UNCHANGED, now)
    elif now == goal:
        report.add(knob.key, APPLIED, now, knob.remark(system, record))
    elif knob.is_slow:
        report.add(knob.key, APPLIED, goal, "told; it takes effect within its own interval")
        report.is_pending = True
    elif not why or why in _REFUSED_NAMES or why == knob.refusal:
        report.add(knob.key, REFUSAL, now, why or f"it became {now!r} instead of {goal!r}")
        report.is_withheld |= goal == record.original
    else:
        report.add(knob.key, FAILED, now, why)


def _finish(system: System, restored: list[Seen], report: Report) -> None:
    """Clean up after what stands at its original again; a record goes last."""
    done: list[Record] = []
    is_reload_due = False
    for knob, record, current, _ in restored:
        try:
            is_reload_due |= knob.finish(system, record)
        except (OSError, IsolationError) as error:
            report.add(knob.key, FAILED, current, reason_of(error))
        else:
            done.append(record)
    systemd = system.systemd() if is_reload_due else None
    if systemd is not None:
        try:
            with systemd:
                systemd.reload()
        except IsolationError as error:  # all is right but for its list of the files that it read
            report.add("systemd/reload", REFUSAL, "", f"{error}: run `systemctl daemon-reload`")
    for record in done:
        record.ours = record.intent = None


def forget(state: State, seen: Iterable[Seen]) -> None:
    """Forget what nothing of ours stands in, of what was seen; see ``drop_restored`` for tasks."""
    for knob, record, _, _ in seen:
        if record.ours is None and record.intent is None and not knob.is_volatile:
            state.records.pop(knob.key, None)


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
    """Return whether an error says that the thing is not there any more."""
    return isinstance(error, OSError) and error.errno in GONE


def reason_of(error: Exception) -> str:
    """Return the errno's name, or what the error says."""
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, str(error.errno))
    return str(error) or type(error).__name__


_REFUSED_NAMES: Final = {errno.errorcode[number] for number in REFUSED}
