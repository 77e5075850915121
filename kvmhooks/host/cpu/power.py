"""Turbo and idle states; the frequencies are in ``policies``.

(Documentation/admin-guide/pm: cpufreq.rst, intel_pstate.rst, amd-pstate.rst, cpuidle.rst.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.files.lists import CPUS
from kvmhooks.host.resources import IdleState, Power

if TYPE_CHECKING:
    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree
    from kvmhooks.host.frequency import FrequencyPolicy
    from kvmhooks.values import CpuSet

_STATE: Final = re.compile(r"state\d{1,2}", re.ASCII)
_DRIVERS: Final = ("intel_pstate", "amd_pstate")


def read_power(
    tree: Tree, policies: tuple[FrequencyPolicy, ...], online: CpuSet | None
) -> Power | None:
    """Read what is not per policy; None where the tree tells nothing of power."""
    power = Power(
        policies=policies,
        boost=_read_boost(tree),
        driver_mode=next(
            (mode for name in _DRIVERS if (mode := tree.text(f"{CPUS}/{name}/status"))), None
        ),
        idle_driver=tree.text(f"{CPUS}/cpuidle/current_driver"),
        # Where the governor can be changed the file has no suffix (cpuidle.rst).
        idle_governor=tree.text(f"{CPUS}/cpuidle/current_governor")
        or tree.text(f"{CPUS}/cpuidle/current_governor_ro"),
        idle_states=_read_idle_states(tree, online),
    )
    return None if power == Power() else power


def _read_boost(tree: Tree) -> bool | None:
    """Return turbo: ``cpufreq/boost``, or the opposite of intel_pstate's ``no_turbo``."""
    boost = tree.text(f"{CPUS}/cpufreq/boost")
    if boost in {"0", "1"}:
        return boost == "1"
    no_turbo = tree.text(f"{CPUS}/intel_pstate/no_turbo")
    return no_turbo == "0" if no_turbo in {"0", "1"} else None


def _read_idle_states(tree: Tree, online: CpuSet | None) -> tuple[IdleState, ...]:
    if not online:
        return ()
    directory = tree.directory(f"{CPUS}/cpu{online.first()}/cpuidle")
    if directory is None:
        return ()
    states = []
    with directory:
        names = sorted(directory.names(_STATE), key=lambda name: int(name.removeprefix("state")))
        for name in names:
            state = directory.child(name)
            if state is not None:
                with state:
                    states.append(_read_state(state))
    return tuple(states)


def _read_state(state: Directory) -> IdleState:
    disabled = state.integer("disable")
    return IdleState(
        name=state.text("name"),
        latency_us=state.integer("latency"),
        residency_us=state.integer("residency"),
        disabled=None if disabled is None else disabled != 0,
    )
