"""The CPU model, what it tells of the hypervisor, and the topology."""

from __future__ import annotations

from typing import Final

from kvmhooks.machine.guest_cpu import SPINLOCK_RETRIES
from kvmhooks.placement.model import Plan

LEVELS = ("sockets", "dies", "cores", "threads")

_HYPERV: Final = {
    "spinlocks": f"hv-spinlocks={SPINLOCK_RETRIES:#x}",
    "tlbflush-extended": "hv-tlbflush-ext=on",
}
"""Properties that are not just ``hv-NAME=on`` (docs/system/i386/hyperv.rst)."""


def arguments(plan: Plan) -> list[str]:
    """Return ``-cpu`` with its features and ``-smp`` with every level that x86 has.

    ``clusters`` are not written: x86 machines refuse them (hw/i386/pc.c).
    """
    count, current = len(plan.vcpus), plan.spec.cpu.current
    topology = [
        *([str(count)] if current in {None, count} else [str(current), f"maxcpus={count}"]),
        *(f"{level}={getattr(plan.topology, level)}" for level in LEVELS),
    ]
    return ["-cpu", ",".join(_model(plan)), "-smp", ",".join(topology)]


def _model(plan: Plan) -> list[str]:
    model = [plan.cpu.model]
    if plan.cpu.vendor is not None:
        model.append(f"vendor={plan.cpu.vendor}")
    switch = {"+": "on", "-": "off"}
    model += [f"{feature[1:]}={switch[feature[0]]}" for feature in plan.cpu.features]
    interface, clock = plan.hardware.interface, plan.hardware.clock
    flags = {
        "migratable": interface.migratable,
        "pmu": interface.pmu,
        "kvm-hint-dedicated": interface.hint_dedicated,
        "kvm-poll-control": interface.poll_control,
        "kvm-pv-ipi": interface.pv_ipi,
        "kvm-pv-eoi": interface.pv_eoi,
        "kvm-pv-unhalt": interface.pv_spinlocks,
        "kvmclock": clock.kvmclock,
        "kvm": False if interface.hidden else None,
        "hv-time": True if clock.hyperv_clock else None,
    }
    model += [
        f"{name}={switch['+' if on else '-']}" for name, on in flags.items() if on is not None
    ]
    if interface.host_caches is not None:
        model += (
            ["host-cache-info=on", "l3-cache=off"]
            if interface.host_caches
            else ["host-cache-info=off", "l3-cache=on"]
        )
    if clock.tsc_hertz is not None:
        model.append(f"tsc-frequency={clock.tsc_hertz}")
    model += [_HYPERV.get(name, f"hv-{name.replace('_', '-')}=on") for name in interface.hyperv]
    return model
