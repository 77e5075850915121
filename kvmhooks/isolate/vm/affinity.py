"""The real places of a VM's vCPUs: a live ``vcpupin`` or ``setvcpus`` calls no hook.

The kernel's word on where the threads may run counts. libvirt is never asked: a hook or a follower
that did so while it holds our lock could wait for one that waits for it.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.isolate.vm.cgroups import Groups
from kvmhooks.isolate.vm.qemu_threads import vcpus_of
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.system.system import System


def live_pins(system: System, held: Held) -> dict[int, CpuSet]:
    """Return the CPUs of each vCPU of a running VM; empty when its threads cannot be told."""
    if held.state != RUNNING:
        return {}
    return vcpus_of(system, Groups.find(system, [held]), held.holder.pid)


def moved(
    exclusive: CpuSet,
    before: Mapping[int, CpuSet],
    live: Mapping[int, CpuSet],
    owners: Mapping[str, CpuSet],
) -> tuple[CpuSet, list[str]]:
    """Return a VM's own CPUs after its vCPUs went from ``before`` to ``live``: pure.

    A vCPU that was unplugged keeps its CPU, since libvirt may plug it in again. One that may run on
    several CPUs has none of its own, and one on a CPU of somebody else's (``owners``: another VM,
    or the host) does not get it. The second value says so, for people.
    """
    forbidden = union(owners.values())
    left, fresh, warnings = CpuSet(), CpuSet(), []
    for vcpu, cpus in sorted(live.items()):
        was = before.get(vcpu)
        if len(cpus) != 1:
            warnings.append(f"vCPU {vcpu} may run on {cpus.brief()}: none of them is its own")
        elif not cpus.isdisjoint(forbidden):
            whose = next(who for who, theirs in owners.items() if not cpus.isdisjoint(theirs))
            warnings.append(f"vCPU {vcpu} runs on {cpus}, which cannot be its own: it is {whose}")
        if was == cpus:
            continue
        if was is not None and len(was) == 1:
            left |= was
        if len(cpus) == 1 and cpus.isdisjoint(forbidden):
            fresh |= cpus
    kept = union(cpus for vcpu, cpus in live.items() if before.get(vcpu) == cpus)
    return (exclusive - (left - kept)) | fresh, warnings


def reread(system: System, held: Held, others: Iterable[Claim], online: CpuSet) -> bool:
    """Bring a claim up to date with its running VM's threads; return whether its CPUs changed.

    ``others`` are the claims of other VMs. The first places seen are taken as the claimed ones.
    """
    live = live_pins(system, held)
    if not live or not held.claim.exclusive:
        return False
    before = {int(vcpu): CpuSet.parse(cpus) for vcpu, cpus in held.pins.items()}
    held.pins |= {str(vcpu): str(cpus) for vcpu, cpus in live.items()}
    if not before:
        return False
    owners = {f"{other.name}'s alone": other.exclusive for other in others}
    left = online - union(owners.values()) - held.claim.exclusive
    keeps, flaws = _housekeeping(system)
    wanted = union(live.values())
    owners[f"the host's (/{administrator.HOST}: host.housekeeping)"] = keeps & left
    if not left - (wanted - keeps):
        owners["the last that the host has"] = wanted & left
    exclusive, warnings = moved(held.claim.exclusive, before, live, owners)
    held.warnings = (*warnings, *flaws)
    if exclusive == held.claim.exclusive:
        return False
    held.claim = held.claim.on(exclusive)
    return True


def take_reserved(system: System, held: Held, cpus: CpuSet) -> None:
    """Let a VM own all CPUs that were reserved for it, if its vCPUs went there: after ``reread``.

    Those that are not there, and may be plugged in later, have theirs among these. A CPU that may
    not be its vCPU's own, or is the administrator's, is nothing to give.
    """
    live = live_pins(system, held)
    own = union(places for places in live.values() if len(places) == 1)
    fresh = cpus - held.claim.exclusive
    is_there = bool(live) and union(live.values()) <= cpus and own <= held.claim.exclusive
    if is_there and fresh.isdisjoint(_housekeeping(system)[0]):
        held.claim = held.claim.on(cpus)


def _housekeeping(system: System) -> tuple[CpuSet, list[str]]:
    """Return the CPUs that no VM may own, and what is wrong where that is said.

    A mistake there keeps no VM from running on.
    """
    try:
        return administrator.limits(system).housekeeping, []
    except IsolationError as error:
        return CpuSet(), [str(error)]


def stale(system: System, held: Held) -> str:
    """Return how a claim is not up to date with its VM; empty when it is."""
    changed = []
    for vcpu, cpus in sorted(live_pins(system, held).items()):
        known = held.pins.get(str(vcpu))
        if held.pins and known != str(cpus):
            was = f"was on {known}" if known else "is new"
            changed.append(f"vCPU {vcpu} is on {cpus.brief()} and {was}")
    return "; ".join(changed) if held.claim.exclusive else ""
