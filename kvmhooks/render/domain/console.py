"""The guest's console, on a pseudo-terminal of libvirt's (``virsh console``)."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element
from kvmhooks.render.domain.pci import address_of


def devices(plan: Plan) -> list[Element]:
    """A serial port, a virtio console, or nothing."""
    kind = plan.spec.console.type
    if kind == "none":
        return []
    if kind == "serial":
        target = element("target", {"type": "isa-serial", "port": 0})
        console = element("target", {"type": "serial", "port": 0})
        return [
            element("serial", {"type": "pty"}, [target]),
            element("console", {"type": "pty"}, [console]),
        ]
    controller = {"type": "virtio-serial", "index": 0}
    target = element("target", {"type": "virtio", "port": 0})
    return [
        element("controller", controller, [address_of(plan, "serial0")]),
        element("console", {"type": "pty"}, [target]),
    ]
