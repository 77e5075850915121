"""A plan as a libvirt domain XML (https://libvirt.org/formatdomain.html)."""

from __future__ import annotations

from lxml import etree

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain import (
    boot,
    console,
    cpu,
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
    machine.absent_devices,
)
"""Every concern that stands in ``<devices>``."""


def render(plan: Plan) -> str:
    """The XML of ``plan``, indented by two spaces, with a final newline."""
    domain = element("domain", {"type": "kvm" if plan.accel == "kvm" else "qemu"})
    for part in PARTS:
        domain.extend(part(plan))
    devices = element("devices")
    for part in DEVICES:
        devices.extend(part(plan))
    domain.append(devices)
    domain.extend(cpu.overrides(plan))
    etree.indent(domain)
    return etree.tostring(domain, encoding="unicode") + "\n"
