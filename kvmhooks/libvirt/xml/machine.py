"""The machine's identity and kind, its end, and what it must not have."""

from __future__ import annotations

from typing import Final

from kvmhooks.machine.element import Element, element, on_off
from kvmhooks.machine.guest_cpu import SPINLOCK_RETRIES
from kvmhooks.placement.model import Plan
from kvmhooks.spec.present import has_device

_HYPERV_PARTS: Final = {"stimer": ("direct",), "tlbflush": ("direct", "extended")}
"""Elements inside elements: ``stimer-direct`` is ``<stimer><direct/></stimer>``."""


def identity(plan: Plan) -> list[Element]:
    """Return the name and the UUID."""
    return [element("name", text=plan.name), element("uuid", text=plan.uuid)]


def features(plan: Plan) -> list[Element]:
    """Return ACPI and the APIC, which q35 has in any case, and what KVM offers to the guest."""
    interface = plan.hardware.interface
    children = [element("acpi"), element("apic", {"eoi": _state(interface.pv_eoi)})]
    if interface.pmu is not None:
        children.append(element("pmu", {"state": on_off(interface.pmu)}))
    kvm = {
        "hidden": True if interface.hidden else None,
        "hint-dedicated": interface.hint_dedicated,
        "poll-control": interface.poll_control,
        "pv-ipi": interface.pv_ipi,
    }
    elements = [
        element(tag, {"state": on_off(flag)}) for tag, flag in kvm.items() if flag is not None
    ]
    if elements:
        children.append(element("kvm", children=elements))
    if interface.hyperv:
        parts = _hyperv(interface.hyperv)
        children.append(element("hyperv", {"mode": "custom"}, parts))
    if interface.pv_spinlocks is not None:
        children.append(element("pvspinlock", {"state": on_off(interface.pv_spinlocks)}))
    children.append(element("vmport", {"state": "off"}))
    if plan.spec.boot.secure_boot:
        children.append(element("smm", {"state": "on"}))
    if plan.hardware.irqchip is not None:
        driver = {"on": "kvm", "split": "qemu"}[plan.hardware.irqchip]
        children.append(element("ioapic", {"driver": driver}))
    return [element("features", children=children)]


def _hyperv(names: tuple[str, ...]) -> list[Element]:
    elements = []
    for name in names:
        if "-" in name:
            continue  # a part of another
        parts = [
            element(part, {"state": "on"})
            for part in _HYPERV_PARTS.get(name, ())
            if f"{name}-{part}" in names
        ]
        retries = SPINLOCK_RETRIES if name == "spinlocks" else None
        elements.append(element(name, {"state": "on", "retries": retries}, parts))
    return elements


def _state(flag: bool | None) -> str | None:  # noqa: FBT001 -- it is the value that is written
    return None if flag is None else on_off(flag)


def life_cycle(plan: Plan) -> list[Element]:
    """Return the clock; power-off ends the VM, a reset resets it, a crash ends it."""
    return [
        _clock(plan),
        element("on_poweroff", text="destroy"),
        element("on_reboot", text="restart"),
        element("on_crash", text="destroy"),
    ]


def _clock(plan: Plan) -> Element:
    clock, asked = plan.hardware.clock, plan.spec.clock
    timers = []
    if asked.rtc_track == "guest" or asked.rtc_ticks == "catchup":
        track = "guest" if asked.rtc_track == "guest" else None
        ticks = "catchup" if asked.rtc_ticks == "catchup" else None
        timers.append({"name": "rtc", "track": track, "tickpolicy": ticks})
    timers.append({"name": "hpet", "present": "yes" if asked.hpet else "no"})
    if clock.kvmclock is not None:
        timers.append({"name": "kvmclock", "present": "yes" if clock.kvmclock else "no"})
    if clock.hyperv_clock:
        timers.append({"name": "hypervclock", "present": "yes"})
    if clock.tsc_hertz is not None:
        timers.append({"name": "tsc", "frequency": str(clock.tsc_hertz)})
    return element("clock", {"offset": clock.offset}, [element("timer", each) for each in timers])


def emulator(plan: Plan) -> list[Element]:
    """Return the QEMU to run, if the spec names one."""
    path = plan.spec.machine.emulator
    return [] if path is None else [element("emulator", text=path)]


def absent_devices(plan: Plan) -> list[Element]:
    """Return what libvirt would add by itself: a USB controller, a balloon and a graphics card."""
    elements = []
    if not has_device(plan.spec, "usb"):
        elements.append(element("controller", {"type": "usb", "model": "none"}))
    if not has_device(plan.spec, "balloon"):
        elements.append(element("memballoon", {"model": "none"}))
    return elements


def security(plan: Plan) -> list[Element]:
    """Return the user that QEMU runs as, and how the guest's memory is encrypted."""
    elements = []
    user = plan.spec.machine.user
    if user is not None:
        attributes = {"type": "static", "model": "dac", "relabel": "yes"}
        elements.append(element("seclabel", attributes, [element("label", text=f"{user}:{user}")]))
    launch = plan.hardware.security
    if launch is None:
        return elements
    kind = "sev" if launch.type == "sev-es" else launch.type
    policy = element("policy", text=launch.policy)
    if kind == "tdx":
        return [*elements, element("launchSecurity", {"type": kind}, [policy])]
    hashes = "yes" if launch.kernel_hashes else None
    children = [
        *([] if launch.cbitpos is None else [element("cbitpos", text=launch.cbitpos)]),
        element("reducedPhysBits", text=launch.reduced_phys_bits),
        policy,
    ]
    return [*elements, element("launchSecurity", {"type": kind, "kernelHashes": hashes}, children)]
