"""Units of systemd that cannot start while VMs own all CPUs of their ``CPUAffinity=``.

systemd puts a unit's process into its group and sets its affinity there: EINVAL when none of the
CPUs is left in the group's set (sched_setaffinity(2); ``EXIT_CPUAFFINITY``, 215, systemd.exec(5)).
With one CPU left it starts there. A unit that runs already goes on elsewhere. All units inherit the
``CPUAffinity=`` of systemd itself (systemd-system.conf(5)): nobody sets it again, so that makes
none of them fail.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.system.system import System

SECONDS: Final = 1.0
"""For how long systemd is asked by a hook: libvirt waits for it."""

LEISURE: Final = 10.0
"""The same where a person waits, or nobody."""

_SHOWN: Final = 8
"""Units that one line names."""

PARTLY: Final = "systemd: not all of its units could be looked at for their CPUAffinity="


def doomed(
    affinities: Mapping[str, CpuSet], own: CpuSet, taken: CpuSet, online: CpuSet
) -> dict[str, CpuSet]:
    """Return the units that cannot start because of a VM on its ``own`` CPUs: pure.

    ``taken`` are the CPUs of all VMs. A unit that has no online CPU at all is not our doing.
    """
    return {
        unit: cpus
        for unit, cpus in sorted(affinities.items())
        if not (cpus & online).isdisjoint(own) and cpus & online <= taken
    }


def told(units: Mapping[str, CpuSet]) -> list[str]:
    """Return the sentence that names units, if there are any."""
    if not units:
        return []
    named = [f"{unit} ({cpus.brief()})" for unit, cpus in units.items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    what = "units that cannot start while VMs own all CPUs of their CPUAffinity= (215/CPUAFFINITY)"
    return [f"{what}: {', '.join(named[:_SHOWN])}{more}"]


def warnings(
    system: System, claims: Iterable[Claim], others: Iterable[Claim], seconds: float = LEISURE
) -> list[str]:
    """Return what a person should know of units before VMs take their CPUs, or while they do.

    ``others`` are the claims that live; systemd is asked no longer than ``seconds``. Raises
    ``OSError``.
    """
    own = taken_from_tasks(claims)
    if not own:
        return []
    known, is_whole = read(system, seconds)
    messages = [] if is_whole else [PARTLY]
    if not known:
        return messages
    online = CpuSet.parse(system.read("sys/devices/system/cpu/online"))
    return told(doomed(known, own, own | taken_from_tasks(others), online)) + messages


def taken_from_tasks(claims: Iterable[Claim]) -> CpuSet:
    """Return the CPUs that the host's tasks have to leave."""
    return union(claim.exclusive for claim in claims if claim.setting("isolation.tasks") == "yes")


def read(system: System, seconds: float) -> tuple[dict[str, CpuSet], bool]:
    """Ask systemd, or read its files where it does not answer, or the host is a tree."""
    from kvmhooks.isolate.system import unit_files  # noqa: PLC0415 -- most hosts have systemd

    systemd = system.systemd(seconds)
    if systemd is None:
        return ({}, True) if system.is_real else unit_files.affinities(system)
    try:
        with systemd:
            return systemd.affinities(seconds)
    except IsolationError:  # another systemd than we know, or it hangs: its files tell as well
        return unit_files.affinities(system)
