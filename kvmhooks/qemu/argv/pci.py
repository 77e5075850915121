"""The PCI Express root ports, and the host's devices that the guest gets."""

from __future__ import annotations

from kvmhooks.machine.arguments import option
from kvmhooks.machine.pci_layout import bus_id
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.argv.plug import where


def arguments(plan: Plan) -> list[str]:
    """Return the host bridges of guest cells, and one root port for each PCI device."""
    words: list[str] = []
    if plan.spec.machine.type == "microvm":
        return words
    for expander in plan.hardware.layout.expanders:
        words += option(
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
        words += option(
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
    return words


def passed_through(plan: Plan) -> list[str]:
    """Return PCI devices of the host, and parts of such (mediated devices)."""
    words: list[str] = []
    for at, device in enumerate(plan.spec.pci):
        words += option(
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
        words += option(
            "device",
            {
                "driver": "vfio-pci",
                "id": f"mdev{at}",
                "sysfsdev": f"/sys/bus/mdev/devices/{mediated.chosen}",
                "display": "on" if mediated.display else "off",
                **where(plan, f"mdev{at}"),
            },
        )
    return words
