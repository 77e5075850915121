"""Who the machine is, what kind it is, when it ends, and what it must not have."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element


def identity(plan: Plan) -> list[Element]:
    """The name and the UUID."""
    return [element("name", text=plan.name), element("uuid", text=plan.uuid)]


def features(_plan: Plan) -> list[Element]:
    """ACPI and the APIC, which q35 has under QEMU in any case."""
    return [element("features", children=[element("acpi"), element("apic")])]


def life_cycle(_plan: Plan) -> list[Element]:
    """The clock is UTC; power-off ends the VM, a reset resets it, a crash ends it."""
    return [
        element("clock", {"offset": "utc"}),
        element("on_poweroff", text="destroy"),
        element("on_reboot", text="restart"),
        element("on_crash", text="destroy"),
    ]


def emulator(plan: Plan) -> list[Element]:
    """The QEMU to run, if the spec names one."""
    path = plan.spec.machine.emulator
    return [] if path is None else [element("emulator", text=path)]


def absent_devices(_plan: Plan) -> list[Element]:
    """What libvirt would add by itself: a USB controller and a balloon."""
    return [
        element("controller", {"type": "usb", "model": "none"}),
        element("memballoon", {"model": "none"}),
    ]
