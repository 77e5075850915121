"""Where a VM's vCPUs really are: a live ``vcpupin`` or ``setvcpus`` calls no hook.

What counts is where the kernel lets the threads run. libvirt is never asked: a hook or a follower
that did so while it holds our lock could wait for one that waits for it.
"""

from __future__ import annotations

from kvmhooks.isolate.groups import Groups
from kvmhooks.isolate.state import RUNNING
from kvmhooks.isolate.threads import vcpus_of
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.state import Held


def live_pins(door: Door, held: Held) -> dict[int, CpuSet]:
    """Where each vCPU of a running VM may run; empty when its threads cannot be told."""
    if held.state != RUNNING:
        return {}
    return vcpus_of(door, Groups.find(door, [held]), held.holder.pid)


def moved(
    exclusive: CpuSet,
    before: Mapping[int, CpuSet],
    live: Mapping[int, CpuSet],
    forbidden: CpuSet,
) -> tuple[CpuSet, list[str]]:
    """The CPUs that are a VM's own after its vCPUs went from ``before`` to ``live``: pure.

    A vCPU that was unplugged keeps its CPU, since libvirt may plug it in again. One that may run on
    several CPUs has none of its own, and one on a ``forbidden`` CPU (another VM's, or the last that
    the host has) does not get it. The second value says so, for people.
    """
    left, fresh, warnings = CpuSet(), CpuSet(), []
    for vcpu, cpus in sorted(live.items()):
        was = before.get(vcpu)
        if len(cpus) != 1:
            warnings.append(f"vCPU {vcpu} may run on {cpus.brief()}: none of them is its own")
        elif not cpus.isdisjoint(forbidden):
            warnings.append(f"vCPU {vcpu} runs on {cpus}, which cannot be its own")
        if was == cpus:
            continue
        if was is not None and len(was) == 1:
            left |= was
        if len(cpus) == 1 and cpus.isdisjoint(forbidden):
            fresh |= cpus
    kept = union(cpus for vcpu, cpus in live.items() if before.get(vcpu) == cpus)
    return (exclusive - (left - kept)) | fresh, warnings


def reread(door: Door, held: Held, others: CpuSet, online: CpuSet) -> bool:
    """Bring a running claim up to date with its VM's threads; whether its CPUs are others now.

    ``others`` are the CPUs of other claims. What is seen first is taken as what was claimed.
    """
    live = live_pins(door, held)
    if not live or not held.claim.exclusive:
        return False
    before = {int(vcpu): CpuSet.parse(cpus) for vcpu, cpus in held.pins.items()}
    held.pins |= {str(vcpu): str(cpus) for vcpu, cpus in live.items()}
    if not before:
        return False
    forbidden = others
    wanted = union(live.values())
    if not online - others - held.claim.exclusive - wanted:
        forbidden |= wanted - held.claim.exclusive
    exclusive, warnings = moved(held.claim.exclusive, before, live, forbidden)
    held.warnings = tuple(warnings)
    if exclusive == held.claim.exclusive:
        return False
    held.claim = held.claim.on(exclusive)
    return True


def stale(door: Door, held: Held) -> str:
    """In which way a claim is not up to date with its VM; empty when it is."""
    said = []
    for vcpu, cpus in sorted(live_pins(door, held).items()):
        known = held.pins.get(str(vcpu))
        if held.pins and known != str(cpus):
            was = f"was on {known}" if known else "is new"
            said.append(f"vCPU {vcpu} is on {cpus.brief()} and {was}")
    return "; ".join(said) if held.claim.exclusive else ""
