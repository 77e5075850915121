"""The PCI Express root ports that the devices are plugged into."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.argv.json_form import option
from kvmhooks.render.buses import ports


def arguments(plan: Plan) -> list[str]:
    """One root port for each PCI device."""
    said: list[str] = []
    for port in ports(plan):
        said += option(
            "device",
            {
                "driver": "pcie-root-port",
                "id": port.bus,
                "bus": "pcie.0",
                "addr": f"{port.slot:#x}.{port.function:#x}",
                "chassis": port.index,
                "port": port.number,
                "multifunction": True if port.announces_others else None,
            },
        )
    return said
