"""The families of knobs: what can be set on this host, found anew at every entry."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from kvmhooks.isolate.knobs import cpusets, irqbalance, irqs, masks, tasks, threads, wishes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.groups import Groups
    from kvmhooks.isolate.knob import Knob, View
    from kvmhooks.isolate.state import Record


def discover(
    door: Door, view: View, groups: Groups, records: Mapping[str, Record]
) -> Iterable[Knob]:
    """Every knob that a claim may touch, and every one that is on record and still there."""
    if not view.held and not records:
        return ()
    return chain(
        irqbalance.knobs(door),
        irqs.knobs(door, view, records),
        masks.knobs(door, view, records),
        wishes.knobs(door, view, records),
        cpusets.knobs(door, view, groups, records),
        tasks.knobs(door, view, groups, records),
        threads.knobs(door, view, groups, records),
    )
