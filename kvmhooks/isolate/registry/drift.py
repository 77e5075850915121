"""All that is on record beside the host as it is: what `status` tells, and no call of a hook asks.

Nothing is written, and no lock is taken: a hook may be at work. So a difference counts as somebody
else's only if no call was under way before and after. A value of somebody else's that leaves VMs
what they ask for is no drift: irqbalance places interrupts all the time. The next call takes it for
the original, as all others'.
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.engine.converge import is_gone, reason_of
from kvmhooks.isolate.engine.knob import View
from kvmhooks.isolate.kinds.kind import KINDS
from kvmhooks.isolate.knobs import discover
from kvmhooks.isolate.record import comparison
from kvmhooks.isolate.record.comparison import Comparison
from kvmhooks.isolate.resources.resource import Access, resource_of
from kvmhooks.isolate.vm.cgroups import Groups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from kvmhooks.isolate.engine.knob import Knob
    from kvmhooks.isolate.record.state import Held, Record, State
    from kvmhooks.isolate.registry.readings import Readings
    from kvmhooks.isolate.system.system import System

_ANOTHER: Final = "another with this number is there by now"
_ENDED: Final = "its VM has ended"
_BEGUN: Final = "a call has begun to set it, and may have been killed"
_RESTORED: Final = "it is as it was: the next call takes it off the record"
_OTHERS: Final = "somebody else has set it so, which takes nothing from a VM: irqbalance, say"
_TAKEN_OVER: Final = "it is somebody else's by now: the next call takes it off the record"

UNDER_WAY: Final = "a call is under way: look again"
"""The reason of what may be somebody else's change, or a hook's that is at work."""


def compare(registry: Readings, state: State) -> list[Comparison]:
    """Return what is on record beside the host: settings first, then resources by their kinds.

    Of settings that nothing of ours stands in there are those alone that are not as VMs ask. Raises
    ``IsolationError`` where the record cannot be used.
    """
    if not state.held and state.is_empty:
        return []
    ended = registry.ended(state)
    live = [held for key, held in state.held.items() if key not in ended]
    found = _settings(registry.system, state, live) + _resources(registry, state, live)
    if any(row.state == comparison.DRIFTED for row in found) and _is_moving(registry, state):
        for row in found:
            if row.state == comparison.DRIFTED:
                row.judged(comparison.UNSETTLED, UNDER_WAY)
    return found


def _is_moving(registry: Readings, state: State) -> bool:
    """Return whether a call is under way, or has changed the record since it was read."""
    if registry.store.is_busy(registry.system):
        return True
    return registry.look().to_text() != state.to_text()


def _resources(registry: Readings, state: State, live: Sequence[Held]) -> list[Comparison]:
    access = Access(registry.system, registry.helper)
    found: list[Comparison] = []
    for kind in KINDS:
        if state.resources.get(kind):
            resource = resource_of(kind)
            is_busy = registry.store.is_busy(registry.system, resource.LOCK)
            found += resource.compare(access, state, live, is_busy=is_busy)
    return found


def _settings(system: System, state: State, live: Sequence[Held]) -> list[Comparison]:
    """Return each setting with its state; what was not come to is unknown, and not forgotten."""
    found: list[Comparison] = []
    left = {key: record for key, record in state.records.items() if is_ours(record)}
    why = ""
    try:
        view = View.read(system, live)
        look = _Look(system, state, view, has_ended=len(live) < len(state.held))
        for knob in _knobs(system, state, view):
            left.pop(knob.key, None)
            found += look.at(knob)
    except (OSError, ValueFormatError) as error:
        why = reason_of(error)
    for key, record in left.items():
        row = Comparison(key, key, by=None if why else ())
        row.was = record.original
        found.append(row.judged(comparison.UNKNOWN if why else comparison.GONE, why))
    return found


def _knobs(system: System, state: State, view: View) -> Iterator[Knob]:
    groups = Groups.find(system, view.held)
    for knobs in discover(system, view, groups, state):
        yield from knobs


def is_ours(record: Record) -> bool:
    """Return whether something of ours stands there, or may stand there."""
    return record.ours is not None or record.intent not in (None, record.original)


class _Look:
    """A look at the settings of one host."""

    def __init__(self, system: System, state: State, view: View, *, has_ended: bool) -> None:
        self.system = system
        self.records = state.records
        self.view = view
        self.has_ended = has_ended
        """A claim is on record whose VM is gone."""

    def at(self, knob: Knob) -> list[Comparison]:
        """Return the comparison of a knob, or nothing where there is nothing to tell."""
        record = self.records.get(knob.key)
        row = Comparison(knob.key, knob.place)
        row.unset = knob.unset
        try:
            if record is not None and record.identity != knob.identity(self.system):
                fresh = self._fresh(knob, row)
                if fresh is None and is_ours(record):
                    row.by, row.was = [], record.original
                    fresh = row.judged(comparison.GONE, _ANOTHER)
                return [] if fresh is None else [fresh]
            if record is None or not is_ours(record):
                fresh = self._fresh(knob, row, record)
                return [] if fresh is None else [fresh]
            row.was = record.original
            row.should = knob.target(record.original, self.view)
            row.by = self._askers(knob, record.original)
            row.now = knob.read(self.system)
            state, why = self._state(knob, record, row.now, row.should)
        except (OSError, ValueFormatError) as error:
            if record is None or not is_ours(record):
                return []
            state = comparison.GONE if is_gone(error) else comparison.UNKNOWN
            return [row.judged(state, reason_of(error))]
        return [row.judged(state, why, self._remedy(knob, state, row.now))]

    def _askers(self, knob: Knob, original: str) -> list[str]:
        every = knob.askers(original, self.view, self.system)
        return [vm.claim.name for vm in every]

    def _fresh(
        self, knob: Knob, row: Comparison, record: Record | None = None
    ) -> Comparison | None:
        """Return a setting that nothing of ours stands in, if it is not as VMs ask.

        One on record was seen before, and then it was as they ask.
        """
        now = knob.read(self.system)
        original = knob.first_original(now, self.records) if record is None else now
        should = knob.target(original, self.view)
        if should == now:
            return None
        row.was, row.should, row.now = original, should, now
        row.by = self._askers(knob, original)
        if record is not None:
            row.was, row.should = record.original, knob.target(record.original, self.view)
        if knob.is_by_kernel(now, self.system):
            return row.judged(comparison.FORCED)
        if record is not None and now != record.original:
            return row.judged(comparison.DRIFTED, remedy=self._remedy_of_drift(knob, now))
        return row.judged(comparison.UNMET, knob.refusal)

    def _state(self, knob: Knob, record: Record, now: str, should: str) -> tuple[str, str]:
        """Return the state of what is ours, and why."""
        if should == record.original:
            return self._unasked(knob, record, now)
        if now == should:
            why = knob.remark(self.system, record)
            return comparison.UNSETTLED if why else comparison.HELD, why
        if record.intent is not None and record.knows(now):
            why = "it takes effect within its own interval" if knob.is_slow else _BEGUN
            return comparison.UNSETTLED, why
        if self._is_by_kernel(knob, record, now):
            return comparison.FORCED, ""
        if not record.made(now):
            is_harmless = knob.target(now, self.view) == now
            return (comparison.UNSETTLED, _OTHERS) if is_harmless else (comparison.DRIFTED, "")
        is_left = self.has_ended
        return (comparison.OWED, _ENDED) if is_left else (comparison.UNMET, knob.refusal)

    def _unasked(self, knob: Knob, record: Record, now: str) -> tuple[str, str]:
        """Return the state of what no VM asks for any more: it is owed, unless it is back."""
        if now == record.original:
            return comparison.UNSETTLED, _RESTORED
        if self.view.held and self._is_by_kernel(knob, record, now):
            return comparison.FORCED, ""
        if record.made(now):
            return comparison.OWED, ""
        return comparison.UNSETTLED, _TAKEN_OVER

    def _is_by_kernel(self, knob: Knob, record: Record, now: str) -> bool:
        return knob.is_by_kernel(now, self.system) or self._is_cut(record, now)

    def _is_cut(self, record: Record, now: str) -> bool:
        """Return whether a list is the original, or ours, without the CPUs that are offline."""
        if self.view.online == self.view.possible:
            return False
        for text in (record.original, record.ours or "", *(record.intent or "").split("|")):
            try:
                if text and now == self.view.present(text):
                    return True
            except ValueFormatError:  # it is no list
                continue
        return False

    def _remedy(self, knob: Knob, state: str, now: str) -> str:
        if state == comparison.DRIFTED:
            return self._remedy_of_drift(knob, now)
        return comparison.RECONCILE if state == comparison.OWED else ""

    def _remedy_of_drift(self, knob: Knob, now: str) -> str:
        """Return what `kvmhooks reconcile` makes of somebody else's value: it is the original."""
        then = knob.target(now, self.view)
        return f"{comparison.RECONCILE}, which makes it {then or knob.unset}"
