"""The guest's console, on a pseudo-terminal of libvirt's (``virsh console``), and its channels."""

from __future__ import annotations

from kvmhooks.placement.buses import has_channels
from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element
from kvmhooks.render.domain.pci import address_of


def devices(plan: Plan) -> list[Element]:
    """A serial port, a virtio console, or nothing; then the channels."""
    kind = plan.spec.console.type
    said = []
    if kind == "serial":
        target = element("target", {"type": "isa-serial", "port": 0})
        console = element("target", {"type": "serial", "port": 0})
        said.append(element("serial", {"type": "pty"}, [target]))
        said.append(element("console", {"type": "pty"}, [console]))
    if has_channels(plan.spec):
        controller = {"type": "virtio-serial", "index": 0}
        said.append(element("controller", controller, [address_of(plan, "virtio-serial0")]))
    if kind == "virtio":
        target = element("target", {"type": "virtio", "port": 0})
        said.append(element("console", {"type": "pty"}, [target]))
    names: list[tuple[str, object]] = []
    if plan.spec.guest.agent:
        names.append(("org.qemu.guest_agent.0", None))
    names += [(each.name, each.socket) for each in plan.spec.channel]
    for at, (name, path) in enumerate(names, 1):
        source = element("source", {"mode": "bind", "path": path})
        target = element("target", {"type": "virtio", "name": name})
        said.append(element("channel", {"type": "unix"}, [source, target, _port(at)]))
    return said


def _port(number: int) -> Element:
    where = {"type": "virtio-serial", "controller": 0, "bus": 0, "port": number}
    return element("address", where)
