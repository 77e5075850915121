"""Frequencies, preferences and idle states.

(Documentation/admin-guide/pm: cpufreq.rst, intel_pstate.rst, amd-pstate.rst, cpuidle.rst; the
preferred cores of Intel are told by ``acpi_cppc/highest_perf``, Documentation/admin-guide/
acpi/cppc_sysfs.rst.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.cpus import CPUS
from kvmhooks.host.resources import FrequencyPolicy, IdleState, Power
from kvmhooks.values import MAX_CPU, CpuSet

if TYPE_CHECKING:
    from kvmhooks.host.directory import Directory
    from kvmhooks.host.tree import Tree

_POLICY: Final = re.compile(r"policy(?:0|[1-9]\d{0,4})", re.ASCII)
_STATE: Final = re.compile(r"state\d{1,2}", re.ASCII)
_CPU_NUMBERS: Final = re.compile(r"\d{1,5}(?:[ ,]+\d{1,5})*", re.ASCII)
_DRIVERS: Final = ("intel_pstate", "amd_pstate")


def read_policies(tree: Tree, *, whole: bool) -> tuple[FrequencyPolicy, ...]:
    """Read the policies; only what the CPUs need of them unless ``whole`` is asked for."""
    directory = tree.directory(f"{CPUS}/cpufreq")
    if directory is None:
        return ()
    with directory:
        policies = [_read_policy(directory, name, whole=whole) for name in directory.names(_POLICY)]
    return tuple(sorted((policy for policy in policies if policy), key=lambda each: each.id))


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


def _read_policy(directory: Directory, name: str, *, whole: bool) -> FrequencyPolicy | None:
    policy = directory.child(name)
    if policy is None:
        return None
    with policy:
        least = FrequencyPolicy(
            id=int(name.removeprefix("policy")),
            cpus=_read_cpus(policy),
            hardware_max_khz=policy.integer("cpuinfo_max_freq"),
            base_khz=policy.integer("base_frequency"),
            ranking=policy.integer("amd_pstate_prefcore_ranking"),
        )
        if not whole:
            return least
        return FrequencyPolicy(
            id=least.id,
            cpus=least.cpus,
            driver=policy.text("scaling_driver"),
            governor=policy.text("scaling_governor"),
            epp=policy.text("energy_performance_preference"),
            hardware_min_khz=policy.integer("cpuinfo_min_freq"),
            hardware_max_khz=least.hardware_max_khz,
            base_khz=least.base_khz,
            min_khz=policy.integer("scaling_min_freq"),
            max_khz=policy.integer("scaling_max_freq"),
            ranking=least.ranking,
        )


def _read_cpus(policy: Directory) -> CpuSet | None:
    """Read ``related_cpus``: numbers with blanks between them, online or not."""
    text = policy.text("related_cpus")
    if not text:
        return None
    if not _CPU_NUMBERS.fullmatch(text):
        policy.warn("related_cpus", f"found {text[:40]!r}, expected numbers of CPUs")
        return None
    return CpuSet(number for word in re.split(r"[ ,]+", text) if (number := int(word)) <= MAX_CPU)


def _read_boost(tree: Tree) -> bool | None:
    """Turbo: ``cpufreq/boost``, or the opposite of intel_pstate's ``no_turbo``."""
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
