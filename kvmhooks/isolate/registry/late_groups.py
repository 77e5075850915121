"""New groups beside the VMs since they started: narrowed at once, and nothing else looked at.

The follower calls this whenever a group appears. The order is the engine's: the value there is on
record before the first write, and so a release gives it back like everything else. A group that has
gone owes nothing, but for the set that systemd keeps of a unit until the next boot.
"""

from __future__ import annotations

from kvmhooks.isolate.engine.converge import changes, forget, make, observe
from kvmhooks.isolate.engine.knob import View
from kvmhooks.isolate.knobs import cpusets, tasks
from kvmhooks.isolate.record.report import Report
from kvmhooks.isolate.vm import neighbours
from kvmhooks.isolate.vm.cgroups import Groups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from kvmhooks.isolate.engine.knob import Knob
    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.system.system import System

_PREFIXES: Final = ("cpus/", "cpus-controller/")


def narrow(system: System, store: Store, state: State) -> Report:
    """Narrow every group beside the VMs that is not as it should be; others' records stay.

    The report is pending while there is a group of which nobody can say yet whose it is.
    """
    report = Report()
    view = View.read(system, state.held.values())
    groups = Groups.find(system, view.held)
    if not cpusets.narrowing(view, groups):
        return report
    every = cpusets.knobs(system, view, groups, state.records)
    sets = [knob for knob in every if knob.key.startswith(_PREFIXES)]
    seen = observe(system, sets, state, view, report)
    wide = {knob.key.partition("/")[2] for _, knob, _, _ in changes(seen)}
    if wide:
        tasks_in_them = _tasks(system, view, groups, state, sorted(wide))
        seen += observe(system, tasks_in_them, state, view, report)
        make(system, store, state, seen, view, report)
    forget(state, seen)
    if wide:
        store.save(state.to_text())
    report.is_pending = any(
        neighbours.is_undecided(system, groups, path, view.held)
        for path in neighbours.strangers(system, groups)
        if f"cpus/{path}" not in state.records
    )
    return report


def _tasks(
    system: System, view: View, groups: Groups, state: State, paths: list[str]
) -> Iterator[Knob]:
    """Return the tasks in groups to be narrowed, whose own masks the kernel may forget."""
    pids = {pid for path in paths for pid in neighbours.members(system, groups, path)}
    return tasks.knobs(system, view, groups, state.records, pids)
