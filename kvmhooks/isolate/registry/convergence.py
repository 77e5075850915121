"""The host made as all claims on record want it, with every knob that there is."""

from __future__ import annotations

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.engine.knob import View
from kvmhooks.isolate.record.report import FAILED, REFUSAL
from kvmhooks.isolate.vm.cgroups import Groups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmhooks.isolate.record.report import Report
    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.system.system import System


def isolate(system: System, store: Store, state: State, held: Held | None) -> Report:
    """Converge; where a VM's partitions are refused, again by narrowing everything else."""
    report = converge_all(system, store, state)
    if held is not None and _was_refused(held, report):
        held.fallback = True
        report = converge_all(system, store, state)
    return report


def converge_all(system: System, store: Store, state: State) -> Report:
    """Converge with every knob of this host."""
    # Most of a `prepare` needs none of it, and libvirt waits.
    from kvmhooks.isolate.engine.converge import converge  # noqa: PLC0415
    from kvmhooks.isolate.knobs import discover  # noqa: PLC0415

    view = View.read(system, state.held.values())
    groups = Groups.find(system, view.held)
    stages = discover(system, view, groups, state)
    report = converge(system, store, state, stages, view)
    _forget_released(system, store, state)
    return report


def _forget_released(system: System, store: Store, state: State) -> None:
    """Remove the notes of releases that are done; one that stays is of no account."""
    try:
        for key in store.released() - state.held.keys():
            store.forget_release(key)
    except (IsolationError, OSError) as error:
        system.log(words_of(error), severity=4)


def _was_refused(held: Held, report: Report) -> bool:
    """Return whether the kernel refused a partition of this VM, or left it invalid."""
    if held.fallback or not held.claim.exclusive:
        return False
    return any(
        result.key.startswith(("partition/", "exclusive/")) for result in report.of(REFUSAL, FAILED)
    )
