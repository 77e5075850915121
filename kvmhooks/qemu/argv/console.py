"""The guest's console, on QEMU's standard output, and the channel of its agent."""

from __future__ import annotations

from kvmhooks.machine.arguments import option
from kvmhooks.machine.pci_layout import has_channels
from kvmhooks.machine.virtio_serial import AGENT, CONTROLLER, channel_argv
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.argv.plug import plug
from kvmhooks.qemu.sockets import socket_of


def arguments(plan: Plan) -> list[str]:
    """Return a serial port, a virtio console, or nothing; then the agent's channel."""
    kind = plan.spec.console.type
    words = [] if kind == "none" else ["-chardev", "stdio,id=console0"]
    if kind == "serial":
        words += option("device", {"driver": "isa-serial", "id": "serial0", "chardev": "console0"})
    if has_channels(plan.spec):
        words += option("device", plug(plan, "virtio-serial", CONTROLLER))
    if kind == "virtio":
        words += option(
            "device",
            {
                "driver": "virtconsole",
                "id": "console",
                "bus": f"{CONTROLLER}.0",
                "chardev": "console0",
            },
        )
    if plan.spec.guest.agent:
        words += channel_argv(0, AGENT, socket_of(plan, "agent"))
    return words
