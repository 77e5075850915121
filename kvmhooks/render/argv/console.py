"""The guest's console, on QEMU's standard output."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.argv.json_form import option
from kvmhooks.render.buses import port_of


def arguments(plan: Plan) -> list[str]:
    """A serial port, a virtio console, or nothing."""
    kind = plan.spec.console.type
    if kind == "none":
        return []
    chardev = ["-chardev", "stdio,id=console0"]
    if kind == "serial":
        device = {"driver": "isa-serial", "id": "serial0", "chardev": "console0"}
        return [*chardev, *option("device", device)]
    bus = port_of(plan, "serial0").bus
    controller = {"driver": "virtio-serial-pci", "id": "serial0", "bus": bus, "addr": "0x0"}
    port = {"driver": "virtconsole", "id": "console", "bus": "serial0.0", "chardev": "console0"}
    return [*chardev, *option("device", controller), *option("device", port)]
