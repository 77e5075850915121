"""The families of knobs: what can be set on this host, found anew at every entry."""

from __future__ import annotations

from kvmhooks.isolate.knobs import (
    caches,
    cpusets,
    irqbalance,
    irqs,
    masks,
    tasks,
    threads,
    wishes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.groups import Groups
    from kvmhooks.isolate.knob import Knob, View
    from kvmhooks.isolate.state import Record


def discover(door: Door, view: View, groups: Groups, records: Mapping[str, Record]) -> list[Knob]:
    """Every knob that a claim may touch, and every one that is on record and still there."""
    if not view.held and not records:
        return []
    return [
        *irqbalance.knobs(door, view),
        *irqs.knobs(door, view, records),
        *masks.knobs(door, view, records),
        *wishes.knobs(door, view, records),
        *caches.knobs(door, view, records),
        *cpusets.knobs(door, view, groups, records),
        *tasks.knobs(door, view, groups, records),
        *threads.knobs(door, view, groups, records),
    ]
