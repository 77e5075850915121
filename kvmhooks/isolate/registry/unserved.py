"""Settings of a VM's policy that nothing on this host could carry out, as far as its files tell.

They are for whoever rehearses a start: a start itself sets what is there.
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.knobs import kernel, memory, power
from kvmhooks.isolate.knobs.threads import unguarded
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.system.system import System

_CPUS: Final = "sys/devices/system/cpu"
_POLICIES: Final = f"{_CPUS}/cpufreq"

_OF_A_CLOCK: Final = {
    "power.governor": ("scaling_governor", "scaling_available_governors"),
    "power.epp": (
        "energy_performance_preference",
        "energy_performance_available_preferences",
    ),
}
"""Setting: its file, and the one that lists what may stand there (admin-guide/pm/cpufreq.rst,
admin-guide/pm/intel_pstate.rst)."""


def unserved(system: System, claim: Claim, others: Sequence[Claim]) -> Iterator[tuple[str, str]]:
    """Yield each setting of a claim that would be left out, and why.

    ``others`` are the claims that are on record, the first one first.
    """
    yield from _of_host(system, claim, others)
    for setting, (name, listed) in _OF_A_CLOCK.items():
        if claim.setting(setting):
            yield from _of_clock(system, claim, setting, (name, listed))
    if claim.setting("power.latency"):
        paths = [f"{_CPUS}/cpu{cpu}/power/pm_qos_resume_latency_us" for cpu in claim.exclusive]
        if not any(map(system.has, paths)):
            yield "power.latency", "no CPU of its own has a pm_qos_resume_latency_us here"
    yield from _of_disks(system, claim)
    if claim.setting("threads.vcpus"):
        why = unguarded(system, claim)
        if why:
            yield "threads.vcpus", why


def _of_host(system: System, claim: Claim, others: Sequence[Claim]) -> Iterator[tuple[str, str]]:
    """Yield what is one for the host: it has no such file, or another VM has the say."""
    paths: dict[str, list[str]] = {}
    for row in (*power.HOST, *memory.HOST, *kernel.HOST):
        paths.setdefault(row.setting, []).append(row.path)
    for setting, files in paths.items():
        wanted = claim.setting(setting)
        if not wanted:
            continue
        if not any(map(system.has, files)):
            yield setting, f"this host has no {' or '.join(f'/{path}' for path in files)}"
            continue
        first = next((other for other in others if other.setting(setting)), None)
        if first is not None and first.key != claim.key and first.setting(setting) != wanted:
            yield setting, f"{first.name}, which was first, asks for {first.setting(setting)}"


def _of_clock(
    system: System, claim: Claim, setting: str, names: tuple[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield a setting of CPUs that share a clock, where none of its own has it, or not this."""
    name, listed = names
    found = False
    for policy in system.directories(_POLICIES):
        path = f"{_POLICIES}/{policy}"
        try:
            cpus = CpuSet.parse_words(system.read(f"{path}/affected_cpus"))
        except (OSError, ValueFormatError):
            continue
        if cpus.isdisjoint(claim.exclusive) or not system.has(f"{path}/{name}"):
            continue
        found = True
        offered = _words(system, f"{path}/{listed}")
        wanted = claim.setting(setting)
        if offered and wanted not in offered and not wanted.isdigit():
            yield setting, f"/{path}/{listed} has {' '.join(offered)}, and no {wanted}"
            return
    if not found:
        yield setting, f"no CPU of its own has a {name} here (/{_POLICIES})"


def _of_disks(system: System, claim: Claim) -> Iterator[tuple[str, str]]:
    """Yield what is asked of disks, where none is a device of the host, or its queue has it not."""
    asked = [name for name in ("storage.scheduler", "storage.requests") if claim.setting(name)]
    if not asked:
        return
    devices = [name for disk in claim.disks if (name := system.block_device(disk))]
    if not devices:
        for setting in asked:
            yield setting, "none of its disks is a block device of this host"
        return
    wanted = claim.setting("storage.scheduler")
    for name in devices:
        path = f"sys/class/block/{name}/queue/scheduler"
        offered = [word.strip("[]") for word in _words(system, path)]
        if wanted and offered and wanted not in offered:
            yield "storage.scheduler", f"/{path} has {' '.join(offered)}, and no {wanted}"


def _words(system: System, path: str) -> list[str]:
    try:
        return system.read(path).split()
    except OSError:  # an older kernel has no list
        return []
