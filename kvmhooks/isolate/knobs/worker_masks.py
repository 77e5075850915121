"""CPU masks of the host's own workers: workqueues, packet steering, the watchdog.

From kernel 6.8 on the mask of unbound workqueues is what was asked for (``cpumask_requested``)
without isolated partitions (``cpumask_isolated``). A write would let them in again
(``workqueue_set_unbound_cpumask()``, kernel/workqueue.c), and the value of ``cpumask`` is no
original: it lacks partitions that may end before ours. So partitions do alone what they can.

Workqueues: Documentation/core-api/workqueue.rst («Affinity Scopes», ``WQ_SYSFS``). RPS and XPS:
Documentation/networking/scaling.rst; RFS has no mask of its own, it chooses among RPS's. The
watchdog: Documentation/admin-guide/lockup-watchdogs.rst.
"""

from __future__ import annotations

from kvmhooks.isolate.engine.knob import CpuListKnob, Knob, canonical
from kvmhooks.isolate.knobs.cpusets import narrowing
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Record
    from kvmhooks.isolate.system.system import System
    from kvmhooks.isolate.vm.cgroups import Groups

_WORKQUEUES: Final = "sys/devices/virtual/workqueue"
_SETTING: Final = "isolation.workqueues"
_NET: Final = "sys/class/net"
_STEERING: Final = (("rx-", "rps_cpus"), ("tx-", "xps_cpus"))


def knobs(
    system: System, view: View, groups: Groups, records: Mapping[str, Record]
) -> Iterator[Knob]:
    """Yield the global mask of unbound workqueues, each workqueue's own, each network queue's."""
    taken = _taken(system, view, groups)
    for key, path in _workqueues(system):
        yield _Workqueue(key, path, view.taken(_SETTING) if key in records else taken, system)
    for device in system.names(_NET):
        for queue in system.names(f"{_NET}/{device}/queues"):
            for prefix, file in _STEERING:
                if queue.startswith(prefix):
                    yield CpuListKnob(
                        f"net/{device}/{queue}",
                        f"{_NET}/{device}/queues/{queue}/{file}",
                        setting="isolation.network",
                        is_mask=True,
                    )
    if "watchdog" in records or view.taken("isolation.watchdog"):
        yield CpuListKnob(
            "watchdog", "proc/sys/kernel/watchdog_cpumask", setting="isolation.watchdog"
        )


def _workqueues(system: System) -> Iterator[tuple[str, str]]:
    """Yield the key and the directory of each mask of workqueues."""
    yield "workqueue", _WORKQUEUES
    for name in system.directories(_WORKQUEUES):
        yield f"workqueue/{name}", f"{_WORKQUEUES}/{name}"


def _taken(system: System, view: View, groups: Groups) -> CpuSet:
    """Return the CPUs to keep workqueues off, but for those that partitions keep them off."""
    if not system.has(f"{_WORKQUEUES}/cpumask_isolated"):
        return view.taken(_SETTING)
    narrowed = narrowing(view, groups)
    return union(
        vm.claim.exclusive
        for vm in view.held
        if vm.claim.setting(_SETTING) == "yes"
        and (vm in narrowed or vm.claim.setting("isolation.tasks") != "yes")
    )


class _Workqueue(CpuListKnob):
    """One mask of workqueues, as it was asked for."""

    __slots__ = ("asked", "taken")

    def __init__(self, key: str, path: str, taken: CpuSet, system: System) -> None:
        super().__init__(key, f"{path}/cpumask", setting=_SETTING, is_mask=True)
        self.taken = taken
        requested = f"{path}/cpumask_requested"
        self.asked = requested if system.has(requested) else ""
        """The file that tells what was asked for, where it is another one."""

    def read(self, system: System) -> str:
        return canonical(system.read(self.asked or self.path), is_mask=True)

    def look(self, system: System) -> str:
        return self.read(system) if self.asked else super().look(system)

    def read_back(self, system: System) -> str:
        return self.read(system) if self.asked else super().read_back(system)

    def target(self, original: str, view: View) -> str:
        return str(view.without(CpuSet.parse(original), self.taken))
