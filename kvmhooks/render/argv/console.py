"""The guest's console, on QEMU's standard output, and its channels to programs of the host."""

from __future__ import annotations

from kvmhooks.placement.buses import has_channels
from kvmhooks.placement.model import Plan
from kvmhooks.render.argv.json_form import option
from kvmhooks.render.argv.plug import plug
from kvmhooks.render.sockets import socket_of

AGENT = "org.qemu.guest_agent.0"
"""The name that QEMU's guest agent opens (docs/interop/qemu-ga.rst)."""


def arguments(plan: Plan) -> list[str]:
    """A serial port, a virtio console, or nothing; then the channels."""
    kind = plan.spec.console.type
    said = [] if kind == "none" else ["-chardev", "stdio,id=console0"]
    if kind == "serial":
        said += option("device", {"driver": "isa-serial", "id": "serial0", "chardev": "console0"})
    if has_channels(plan.spec):
        said += option("device", plug(plan, "virtio-serial", "virtio-serial0"))
    if kind == "virtio":
        said += option(
            "device",
            {
                "driver": "virtconsole",
                "id": "console",
                "bus": "virtio-serial0.0",
                "chardev": "console0",
            },
        )
    for at, (name, path) in enumerate(_channels(plan)):
        escaped = path.replace(",", ",,")
        said += ["-chardev", f"socket,id=channel{at}-socket,path={escaped},server=on,wait=off"]
        port: dict[str, object] = {
            "bus": "virtio-serial0.0",
            "nr": at + 1,
            "chardev": f"channel{at}-socket",
        }
        said += option(
            "device", {"driver": "virtserialport", "id": f"channel{at}", **port, "name": name}
        )
    return said


def _channels(plan: Plan) -> list[tuple[str, str]]:
    agent = [(AGENT, socket_of(plan, "agent"))] if plan.spec.guest.agent else []
    return agent + [(str(each.name), str(each.socket)) for each in plan.spec.channel]
