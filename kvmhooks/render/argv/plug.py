"""A device's driver, its id, and where it is plugged in."""

from __future__ import annotations

from typing import Any

from kvmhooks.placement.buses import bus_id
from kvmhooks.placement.model import Plan


def plug(plan: Plan, driver: str, name: str) -> dict[str, Any]:
    """The first properties of a virtio device ``name``: on PCI, or on microvm's own bus."""
    if plan.spec.machine.type == "microvm":
        return {"driver": f"{driver}-device", "id": name}
    return {"driver": f"{driver}-pci", "id": name, **where(plan, name)}


def where(plan: Plan, name: str) -> dict[str, Any]:
    """The bus and the address of a PCI device."""
    place = plan.hardware.layout.places[name]
    function = f".{place.function:#x}" if place.function else ""
    return {
        "bus": bus_id(place.bus),
        "addr": f"{place.slot:#x}{function}",
        "multifunction": True if place.announces_others else None,
    }
