"""A plan as a libvirt domain XML (https://libvirt.org/formatdomain.html)."""

from __future__ import annotations

from lxml import etree

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain import (
    boot,
    console,
    cpu,
    desktop,
    devices,
    disks,
    machine,
    memory,
    metadata,
    nets,
    pci,
    tuning,
)
from kvmhooks.render.domain.element import element

PARTS = (
    machine.identity,
    metadata.elements,
    memory.size,
    cpu.count,
    tuning.elements,
    memory.elements,
    boot.elements,
    machine.features,
    cpu.elements,
    machine.life_cycle,
)
"""Every concern that stands in ``<domain>`` itself, in libvirt's order."""

DEVICES = (
    machine.emulator,
    pci.devices,
    disks.devices,
    nets.devices,
    console.devices,
    desktop.devices,
    pci.passed_through,
    devices.devices,
    memory.devices,
    machine.absent_devices,
)
"""Every concern that stands in ``<devices>``."""


AFTER = (machine.security, cpu.overrides)
"""Every concern that stands after ``<devices>``."""


def render(plan: Plan) -> str:
    """The XML of ``plan``, indented by two spaces, with a final newline."""
    domain = element("domain", {"type": "kvm" if plan.accel == "kvm" else "qemu"})
    for part in PARTS:
        domain.extend(part(plan))
    inside = element("devices")
    for part in DEVICES:
        inside.extend(part(plan))
    domain.append(inside)
    for part in AFTER:
        domain.extend(part(plan))
    etree.indent(domain)
    return etree.tostring(domain, encoding="unicode") + "\n"
