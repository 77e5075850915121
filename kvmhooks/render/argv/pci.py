"""The PCI Express root ports, and the host's devices that the guest gets."""

from __future__ import annotations

from kvmhooks.placement.buses import bus_id
from kvmhooks.placement.model import Plan
from kvmhooks.render.argv.json_form import option
from kvmhooks.render.argv.plug import where


def arguments(plan: Plan) -> list[str]:
    """The host bridges of guest cells, and one root port for each PCI device."""
    said: list[str] = []
    if plan.spec.machine.type == "microvm":
        return said
    for expander in plan.hardware.layout.expanders:
        said += option(
            "device",
            {
                "driver": "pxb-pcie",
                "id": bus_id(expander.index),
                "bus": "pcie.0",
                "addr": f"{expander.slot:#x}",
                "bus_nr": expander.first_bus,
                "numa_node": expander.cell,
            },
        )
    for port in plan.hardware.layout.ports:
        said += option(
            "device",
            {
                "driver": "pcie-root-port",
                "id": port.bus,
                "bus": bus_id(port.parent),
                "addr": f"{port.slot:#x}.{port.function:#x}",
                "chassis": port.index,
                "port": port.number,
                "multifunction": True if port.announces_others else None,
            },
        )
    return said


def passed_through(plan: Plan) -> list[str]:
    """PCI devices of the host, and parts of such (mediated devices)."""
    said: list[str] = []
    for at, device in enumerate(plan.spec.pci):
        said += option(
            "device",
            {
                "driver": "vfio-pci",
                "host": str(device.chosen),
                "id": f"pci{at}",
                **where(plan, f"pci{at}"),
                "rombar": None if device.rom_bar is None else int(device.rom_bar),
                "romfile": None if device.rom is None else str(device.rom),
            },
        )
    for at, mediated in enumerate(plan.spec.mdev):
        said += option(
            "device",
            {
                "driver": "vfio-pci",
                "id": f"mdev{at}",
                "sysfsdev": f"/sys/bus/mdev/devices/{mediated.chosen}",
                "display": "on" if mediated.display else "off",
                **where(plan, f"mdev{at}"),
            },
        )
    return said
