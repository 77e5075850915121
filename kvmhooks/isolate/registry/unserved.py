"""Settings of a VM's policy that nothing on this host could carry out, as far as its files tell.

A start sets what is there, and no report has what is not. The write of a value tells whether it is
taken, or ``accepted`` before it.
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

_WATCHDOG: Final = "proc/sys/kernel/watchdog_cpumask"

_OF_A_CLOCK: Final = {
    "power.governor": "scaling_governor",
    "power.epp": "energy_performance_preference",
}
"""Setting, and its file (admin-guide/pm/cpufreq.rst, admin-guide/pm/intel_pstate.rst)."""


_OF_A_QUEUE: Final = {"storage.scheduler": "scheduler", "storage.requests": "nr_requests"}
"""The same of a disk's queue (Documentation/ABI/stable/sysfs-block)."""


def unserved(
    system: System, claim: Claim, others: Sequence[Claim], hollow: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield each setting of a claim that would be left out, and why.

    ``others`` are the claims that are on record, the first one first. ``hollow`` are sentences on
    settings that do nothing on any host, for want of something in the VM (``claims.effects``):
    those are told already.
    """
    for setting, why in _found(system, claim, others) if claim.settings else ():
        if not any(sentence.startswith(f"{setting}: ") for sentence in hollow):
            yield setting, why


def _found(system: System, claim: Claim, others: Sequence[Claim]) -> Iterator[tuple[str, str]]:
    yield from _of_host(system, claim, others)
    if claim.exclusive:
        yield from _of_cpus(system, claim)
    if claim.disks:
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


def _of_cpus(system: System, claim: Claim) -> Iterator[tuple[str, str]]:
    """Yield what none of its own CPUs has a file for."""
    for setting, name in _OF_A_CLOCK.items():
        if claim.setting(setting) and not _has_clock(system, claim, name):
            yield setting, f"no CPU of its own has a {name} here (/{_POLICIES})"
    if claim.setting("isolation.watchdog") == "yes" and not system.has(_WATCHDOG):
        yield "isolation.watchdog", f"this host has no /{_WATCHDOG}"
    if claim.setting("power.latency"):
        paths = [f"{_CPUS}/cpu{cpu}/power/pm_qos_resume_latency_us" for cpu in claim.exclusive]
        if not any(map(system.has, paths)):
            yield "power.latency", "no CPU of its own has a pm_qos_resume_latency_us here"


def _has_clock(system: System, claim: Claim, name: str) -> bool:
    """Return whether CPUs of a claim share a clock that has such a file."""
    for policy in system.directories(_POLICIES):
        path = f"{_POLICIES}/{policy}"
        try:
            cpus = CpuSet.parse_words(system.read(f"{path}/affected_cpus"))
        except (OSError, ValueFormatError):  # all of its CPUs are offline
            continue
        if not cpus.isdisjoint(claim.exclusive) and system.has(f"{path}/{name}"):
            return True
    return False


def _of_disks(system: System, claim: Claim) -> Iterator[tuple[str, str]]:
    """Yield what is asked of disks, where none is a device of the host, or has such a queue."""
    names = [name for disk in claim.disks if (name := system.block_device(disk))]
    for setting, file in _OF_A_QUEUE.items():
        if not claim.setting(setting):
            continue
        if not names:
            yield setting, "none of its disks is a block device of this host"
        elif not any(system.has(f"sys/class/block/{name}/queue/{file}") for name in names):
            yield setting, f"none of its disks has a queue/{file} here (/sys/class/block)"


def told(system: System, claim: Claim, others: Sequence[Claim], hollow: Sequence[str]) -> list[str]:
    """Return a sentence for each setting that does nothing: ``hollow``, and those of the host."""
    left_out = unserved(system, claim, others, hollow)
    return [*hollow, *(f"{setting}: left out: {why}" for setting, why in left_out)]
