"""The guest's console, on a pseudo-terminal of libvirt's (``virsh console``), and its agent."""

from __future__ import annotations

from kvmhooks.libvirt.xml.pci import address_of
from kvmhooks.machine.element import Element, element
from kvmhooks.machine.pci_layout import has_channels
from kvmhooks.machine.virtio_serial import AGENT, CONTROLLER, channel_element
from kvmhooks.placement.model import Plan


def devices(plan: Plan) -> list[Element]:
    """Return a serial port, a virtio console, or nothing; then the agent's channel."""
    kind = plan.spec.console.type
    elements = []
    if kind == "serial":
        target = element("target", {"type": "isa-serial", "port": 0})
        console = element("target", {"type": "serial", "port": 0})
        elements.append(element("serial", {"type": "pty"}, [target]))
        elements.append(element("console", {"type": "pty"}, [console]))
    if has_channels(plan.spec):
        controller = {"type": "virtio-serial", "index": 0}
        elements.append(element("controller", controller, [address_of(plan, CONTROLLER)]))
    if kind == "virtio":
        target = element("target", {"type": "virtio", "port": 0})
        elements.append(element("console", {"type": "pty"}, [target]))
    if plan.spec.guest.agent:
        elements.append(channel_element(0, AGENT, None))
    return elements
