"""The admission of a claim beside those that live; nothing is changed here."""

from __future__ import annotations

from kvmhooks.errors import IsolationError, ValueFormatError
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.engine.knob import View
from kvmhooks.isolate.vm.cgroups import MACHINES, Groups
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from kvmhooks.isolate.claims.administrator import Limits
    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.system.system import System

_MOST_GROUPS: Final = 10_000
"""So many groups are looked at for one that has the CPUs; a hook has no time for more."""


def check(
    claim: Claim, held: Iterable[Held], awaited: Iterable[tuple[Claim, int]], system: System
) -> None:
    """Refuse CPUs that another VM has, that are not there, or that leave the host none.

    ``awaited`` are claims of VMs that are expected, and until when. Raises ``IsolationError``.
    """
    held = [*held]
    for vm in held:
        both = vm.claim.exclusive & claim.exclusive
        if both and vm.claim.key != claim.key:
            raise IsolationError(
                f"{claim.name}: CPUs {both} are {vm.claim.name}'s alone "
                f"({vm.claim.uuid}): stop it, or pin {claim.name} elsewhere "
                f"(`kvmhooks tune {claim.name}`)"
            )
    for other, until in awaited:
        both = other.exclusive & claim.exclusive
        if both and other.key != claim.key:
            left = until - system.now()
            raise IsolationError(
                f"{claim.name}: CPUs {both} are kept for {other.name}, which is expected "
                f"within {left:.0f} s"
            )
    view = View.read(system, held)
    absent = claim.exclusive - view.online
    if absent:
        raise IsolationError(f"{claim.name}: CPUs {absent} are not online on this host")
    if claim.exclusive and not view.online - view.exclusive - claim.exclusive:
        raise IsolationError(
            f"{claim.name}: CPUs {claim.exclusive} are all that is left of {view.online}: the "
            "host itself needs at least one"
        )


def check_housekeeping(claim: Claim, limits: Limits) -> None:
    """Refuse CPUs that the administrator keeps. Raises ``IsolationError``."""
    both = claim.exclusive & limits.housekeeping
    if both:
        raise IsolationError(
            f"{claim.name}: CPUs {both} are the host's (/{administrator.HOST}: host.housekeeping): "
            f"pin {claim.name} elsewhere (`kvmhooks tune {claim.name}`)"
        )


def check_partitions(claim: Claim, held: Iterable[Held], system: System) -> None:
    """Refuse CPUs in somebody else's partition: libvirt could not pin a vCPU there.

    A partition that VMs are put into is theirs. Raises ``IsolationError``.
    """
    groups = Groups.find(system, ())
    free = groups.effective(system, "") if groups.is_unified and groups.base else None
    if free is None or not claim.exclusive:
        return
    view = View.read(system, held)
    lost = (claim.exclusive & view.online) - free - view.exclusive
    group = _partition_with(system, groups, lost) if lost else ""
    if group and group not in MACHINES:
        raise IsolationError(
            f"{claim.name}: CPUs {lost} are in a partition of the group /{group} "
            f"(/{groups.base}/{group}/cpuset.cpus.partition): end that, or pin {claim.name} "
            f"elsewhere (`kvmhooks tune {claim.name}`)"
        )


def _partition_with(system: System, groups: Groups, cpus: CpuSet) -> str:
    """Return the uppermost group that is a valid partition with some of these CPUs, or empty."""
    todo = [""]
    for number, path in enumerate(todo):
        if number == _MOST_GROUPS:
            break
        base = f"{groups.base}/{path}".rstrip("/")
        if path and not _cpus_of(system, base).isdisjoint(cpus):
            return path
        todo += [f"{path}/{name}".lstrip("/") for name in system.directories(base)]
    return ""


def _cpus_of(system: System, base: str) -> CpuSet:
    """Return the CPUs that a group has taken as a partition, from the groups above it too.

    ``cpuset.cpus.partition`` says ``root`` or ``isolated``, and why it is invalid; from kernel 6.7
    on ``cpuset.cpus.exclusive.effective`` has the CPUs taken (admin-guide/cgroup-v2.rst).
    """
    try:
        if system.read(f"{base}/cpuset.cpus.partition") not in {"root", "isolated"}:
            return CpuSet()
        taken = f"{base}/cpuset.cpus.exclusive.effective"
        name = taken if system.has(taken) else f"{base}/cpuset.cpus.effective"
        return CpuSet.parse(system.read(name))
    except (OSError, ValueFormatError):  # it has gone, or the controller is not enabled above it
        return CpuSet()
