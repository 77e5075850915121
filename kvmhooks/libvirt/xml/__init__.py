"""A plan as a libvirt domain XML (https://libvirt.org/formatdomain.html)."""

from __future__ import annotations

from lxml import etree

from kvmhooks.libvirt.xml import (
    boot,
    console,
    cpu,
    devices,
    disks,
    machine,
    memory,
    metadata,
    nets,
    pci,
    tuning,
)
from kvmhooks.machine.element import Element, element
from kvmhooks.placement.model import Plan

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
    devices.channels,
    devices.desktop,
    pci.passed_through,
    devices.devices,
    memory.devices,
    machine.absent_devices,
)
"""Every concern that stands in ``<devices>``."""


AFTER = (machine.security, cpu.overrides)
"""Every concern that stands after ``<devices>``."""


def domain_xml(plan: Plan) -> str:
    """Return the XML of ``plan``, indented by two spaces, with a final newline."""
    inside = [made for part in DEVICES for made in part(plan)]
    children = [
        *(made for part in PARTS for made in part(plan)),
        element("devices", children=inside),
        *(made for part in AFTER for made in part(plan)),
    ]
    kind = "kvm" if plan.accel == "kvm" else "qemu"
    domain = _written(element("domain", {"type": kind}, children))
    etree.indent(domain)
    return etree.tostring(domain, encoding="unicode") + "\n"


def _written(described: Element) -> etree._Element:
    """Return lxml's element of ours."""
    made = etree.Element(described.tag, {**described.attributes}, nsmap=described.namespaces)
    made.text = described.text
    made.extend(_written(child) for child in described.children)
    return made
