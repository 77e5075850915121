"""Improvements of the clock, and of what KVM tells the guest."""

from __future__ import annotations

from typing import Final

from kvmhooks.libvirt.edit.editor import New
from kvmhooks.libvirt.tuning.situation import Situation

_TIMERS: Final = (
    ("rtc", {"tickpolicy": "catchup"}),
    ("pit", {"tickpolicy": "delay"}),
    ("hpet", {"present": "no"}),
)
"""The timers that virt-manager writes for every x86 guest (virtinst/domain/clock.py)."""

_HYPERV: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("relaxed", {}),
    ("vapic", {}),
    ("spinlocks", {"retries": "8191"}),
    ("vpindex", {}),
    ("runtime", {}),
    ("synic", {}),
    ("stimer", {}),
    ("reset", {}),
    ("frequencies", {}),
    ("tlbflush", {}),
    ("ipi", {}),
)
"""Hyper-V's interfaces that KVM has on all of its hosts, those that others need before them
(docs/system/i386/hyperv.rst of QEMU 7.2)."""


def clock(situation: Situation) -> None:
    """Remove the HPET: guests that see one may use it, and each read of it leaves the guest."""
    if not situation.is_kvm or situation.is_own:
        return
    why = "the HPET is emulated in QEMU; guests have better clocks"
    wanted = _TIMERS if situation.is_windows else _TIMERS[2:]
    present = {timer.get("name") for timer in situation.root.all("clock/timer")}
    for name, attributes in wanted:
        if name not in present:
            element = situation.child("clock", why)
            if element.get("offset") is None:
                situation.editor.set(element, "offset", "utc", why)
            reason = why if name == "hpet" else "Windows counts ticks, also those that came late"
            situation.editor.add(element, New("timer", {"name": name, **attributes}), reason)
    if situation.is_windows and "hypervclock" not in present:
        attributes = {"name": "hypervclock", "present": "yes"}
        reason = "Windows reads the time without leaving the guest"
        situation.editor.add(situation.child("clock", reason), New("timer", attributes), reason)


def hyperv(situation: Situation) -> None:
    """Add Hyper-V's interfaces for a Windows guest, those that the domain is silent about.

    One that is there and off stays off, and with it all that need it.
    """
    root, editor = situation.root, situation.editor
    if not situation.is_kvm or not situation.is_windows or situation.is_own:
        return
    element = root.find("features/hyperv")
    if element is not None and element.get("mode", "custom") != "custom":
        return
    present = {} if element is None else {child.tag: child for child in element.children}
    off = {tag for tag, child in present.items() if child.get("state") == "off"}
    why = "Windows asks the hypervisor instead of emulated hardware"
    needs = {"synic": "vpindex", "stimer": "synic", "tlbflush": "vpindex", "ipi": "vpindex"}
    for name, attributes in _HYPERV:
        if needs.get(name) in off:
            off.add(name)
        elif name not in present:
            target = situation.child("features/hyperv", why)
            editor.add(target, New(name, {"state": "on", **attributes}), why)


def hints(situation: Situation) -> None:
    """Tell a Linux guest on CPUs of its own that its vCPUs are never preempted.

    libvirt takes it for ``host-passthrough`` only (``qemuValidateDomainDefFeatures()``).
    """
    root = situation.root
    cpu = root.find("cpu")
    is_passthrough = cpu is None or situation.editor.get(cpu, "mode") == "host-passthrough"
    if situation.is_own or not situation.is_kvm or situation.is_windows or not is_passthrough:
        return
    if not situation.is_dedicated or root.find("features/kvm/hint-dedicated") is not None:
        return
    why = "vCPUs that are never preempted need no locks that yield"
    target = situation.child("features/kvm", why)
    situation.editor.add(target, New("hint-dedicated", {"state": "on"}), why)
