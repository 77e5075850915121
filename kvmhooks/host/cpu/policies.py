"""CPUs whose frequency is set together: ``/sys/devices/system/cpu/cpufreq/policy*``.

(Documentation/admin-guide/pm/cpufreq.rst; AMD's ranking of preferred cores is in amd-pstate.rst.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.files.lists import CPUS
from kvmhooks.host.frequency import FrequencyPolicy
from kvmhooks.values import MAX_CPU, CpuSet

if TYPE_CHECKING:
    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

_POLICY: Final = re.compile(r"policy(?:0|[1-9]\d{0,4})", re.ASCII)
_CPU_NUMBERS: Final = re.compile(r"\d{1,5}(?:[ ,]+\d{1,5})*", re.ASCII)


def read_policies(tree: Tree, *, whole: bool) -> tuple[FrequencyPolicy, ...]:
    """Read the policies; only what the CPUs need of them unless ``whole`` is asked for."""
    directory = tree.directory(f"{CPUS}/cpufreq")
    if directory is None:
        return ()
    with directory:
        policies = [_read_policy(directory, name, whole=whole) for name in directory.names(_POLICY)]
    return tuple(sorted((policy for policy in policies if policy), key=lambda each: each.id))


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
