"""CPU masks of the host's own workers: workqueues, packet steering, the watchdog.

Workqueues: Documentation/core-api/workqueue.rst («Affinity Scopes», ``WQ_SYSFS``). RPS and XPS:
Documentation/networking/scaling.rst; RFS has no mask of its own, it chooses among RPS's. The
watchdog: Documentation/admin-guide/lockup-watchdogs.rst.
"""

from __future__ import annotations

from kvmhooks.isolate.knob import CpuListKnob, Knob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import View
    from kvmhooks.isolate.state import Record

_WORKQUEUES: Final = "sys/devices/virtual/workqueue"
_NET: Final = "sys/class/net"
_STEERING: Final = (("rx-", "rps_cpus"), ("tx-", "xps_cpus"))


def knobs(door: Door, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """The global mask of unbound workqueues, each workqueue's own, each network queue's."""
    yield CpuListKnob(
        "workqueue", f"{_WORKQUEUES}/cpumask", setting="isolation.workqueues", is_mask=True
    )
    for name in door.directories(_WORKQUEUES):
        yield CpuListKnob(
            f"workqueue/{name}",
            f"{_WORKQUEUES}/{name}/cpumask",
            setting="isolation.workqueues",
            is_mask=True,
        )
    for device in door.names(_NET):
        for queue in door.names(f"{_NET}/{device}/queues"):
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
