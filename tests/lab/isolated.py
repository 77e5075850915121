"""Guests of the lab that own CPUs, and what disturbs them there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import guests

if TYPE_CHECKING:
    from .lab import Lab

POLICY = (
    '<metadata><kvmhooks:vm xmlns:kvmhooks="urn:kvmhooks:1">'
    '<kvmhooks:isolation exclusive="yes"/></kvmhooks:vm></metadata>'
)

LOAD = """
for slice in system.slice user.slice; do
    for worker in 1 2; do
        systemd-run -q --slice=$slice sh -c 'while :; do /bin/true; sleep 0.1; done'
    done
done
for cpus in 2 3 6 7; do
    systemd-run -q --slice=system.slice --unit=canary$cpus taskset -c $cpus sleep 3000
done
"""
"""Workers that fork all the time in both slices, and tasks whose owner has pinned them."""


def owning(name: str, cpus: tuple[int, int], emulator: str = "0-1", policy: str = POLICY) -> str:
    """A guest whose two vCPUs have these CPUs."""
    pins = "".join(f"<vcpupin vcpu='{at}' cpuset='{cpu}'/>" for at, cpu in enumerate(cpus))
    tune = f"<cputune>{pins}<emulatorpin cpuset='{emulator}'/></cputune>"
    text = guests.domain(name).replace("<memory unit", f"{policy}<memory unit", 1)
    return text.replace("<vcpu>2</vcpu>", f"<vcpu>2</vcpu>{tune}")


def start(lab: Lab, name: str, cpus: tuple[int, int], **how: str) -> None:
    """Define and start one, and wait until its kernel is up."""
    lab.put(f"/root/{name}.xml", owning(name, cpus, **how))
    lab.output(f"virsh -q create /root/{name}.xml", seconds=120)
    guests.wait_for(lab, guests.log_of(name), "NESTED-HOLD")


def stop(lab: Lab, name: str) -> None:
    """End one at once, and wait until libvirt has called the hook for it."""
    lab.output(f"virsh -q destroy {name}", seconds=120)


def intruders(lab: Lab, name: str, cpus: tuple[int, int], seconds: float) -> dict[str, int]:
    """How often something else than the guest ran on its CPUs, and device interrupts there."""
    pids = lab.output(f"ls /proc/$(cat /run/libvirt/qemu/{name}.pid)/task").split()
    ran = [one for one in lab.switches(cpus, seconds) if str(one.pid) not in pids]
    taken = [one for one in lab.irqs(cpus, seconds) if one.is_device]
    return {
        "user": sum(one.switches for one in ran if one.is_kernel is False),
        "unknown": sum(one.switches for one in ran if one.is_kernel is None),
        "kernel": sum(one.switches for one in ran if one.is_kernel),
        "device interrupts": sum(one.count for one in taken),
    }
