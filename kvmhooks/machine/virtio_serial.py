"""A port of the virtio-serial controller, for the guest's agent and for other channels."""

from __future__ import annotations

from kvmhooks.machine.arguments import option
from kvmhooks.machine.element import Element, element

CONTROLLER = "virtio-serial0"

AGENT = "org.qemu.guest_agent.0"
"""The name that QEMU's guest agent opens (docs/interop/qemu-ga.rst)."""


def channel_argv(at: int, name: str, path: str) -> list[str]:
    """Return QEMU's arguments for the channel ``at``: a port, and the socket that QEMU makes."""
    escaped = path.replace(",", ",,")
    socket = f"channel{at}-socket"
    device: dict[str, object] = {
        "driver": "virtserialport",
        "id": f"channel{at}",
        "bus": f"{CONTROLLER}.0",
        "nr": at + 1,
        "chardev": socket,
        "name": name,
    }
    chardev = f"socket,id={socket},path={escaped},server=on,wait=off"
    return ["-chardev", chardev, *option("device", device)]


def channel_element(at: int, name: str, path: object) -> Element:
    """Return libvirt's ``<channel>``; without a path libvirt has a socket of its own."""
    where = {"type": "virtio-serial", "controller": 0, "bus": 0, "port": at + 1}
    children = [
        element("source", {"mode": "bind", "path": path}),
        element("target", {"type": "virtio", "name": name}),
        element("address", where),
    ]
    return element("channel", {"type": "unix"}, children)
