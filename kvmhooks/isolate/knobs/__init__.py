"""The families of knobs: what can be set on this host, found anew at every transaction."""

from __future__ import annotations

from kvmhooks.isolate.knobs import (
    block,
    cpusets,
    host_values,
    irqbalance,
    irqs,
    kernel,
    memory,
    power,
    resctrl,
    tasks,
    threads,
    worker_masks,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from kvmhooks.isolate.engine.knob import Knob, View
    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.system.system import System
    from kvmhooks.isolate.vm.cgroups import Groups

_MASKS_KEPT_SINCE: Final = (6, 2)
"""The first kernel on which a task's own mask outlives a change of its cpuset (8f9ea86fdf99)."""


def discover(system: System, view: View, groups: Groups, state: State) -> Iterator[list[Knob]]:
    """Find every knob that a claim may touch, and every one on record that is still there.

    They come in stages, each found when the one before is done. While a claim lives there is one:
    the other effects of a write have to be looked at before. Without any the groups come first,
    since most of the host is in them; with them the tasks, where a change of a group may cost a
    task its mask. Interrupts are no later than tasks, since their threads go where they go.
    """
    if not view.held and not state.records:
        return
    if view.held:
        yield (
            _others(system, view, groups, state)
            + _groups(system, view, groups, state)
            + _tasks(system, view, groups, state)
        )
        return
    first = _groups(system, view, groups, state)
    is_apart = view.kernel >= _MASKS_KEPT_SINCE and not any(
        key.startswith("partition/") for key in state.records
    )
    if is_apart:
        yield first
        first = []
    yield first + _tasks(system, view, groups, state)
    yield _others(system, view, groups, state)


def _groups(system: System, view: View, groups: Groups, state: State) -> list[Knob]:
    return [*cpusets.knobs(system, view, groups, state.records)]


def _tasks(system: System, view: View, groups: Groups, state: State) -> list[Knob]:
    return [
        *irqs.knobs(system, view, state.records),
        *tasks.knobs(system, view, groups, state.records),
        *threads.knobs(system, view, groups, state.records),
    ]


def _others(system: System, view: View, groups: Groups, state: State) -> list[Knob]:
    return [
        *irqbalance.knobs(system, view),
        *worker_masks.knobs(system, view, groups, state.records),
        *host_values.knobs((*power.HOST, *memory.HOST, *kernel.HOST), view, state.records),
        *power.knobs(system, view, state.records),
        *block.knobs(system, view, state.records),
        *resctrl.knobs(system, view, state.records),
    ]
