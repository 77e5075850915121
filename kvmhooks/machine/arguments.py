"""QEMU's JSON form of ``-object``, ``-blockdev``, ``-device`` and ``-netdev`` (7.2 has all), and in
it where a device is plugged in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmhooks.machine.pci_layout import Layout


def option(name: str, properties: dict[str, Any]) -> list[str]:
    """Return ``-name {properties}``; properties that are None are left out."""
    document = {key: value for key, value in properties.items() if value is not None}
    return [f"-{name}", json.dumps(document, separators=(",", ":"))]


def plug(layout: Layout, driver: str, name: str, *, on_pci: bool) -> dict[str, Any]:
    """Return the first properties of a virtio device ``name``: on PCI, or on microvm's own bus."""
    if not on_pci:
        return {"driver": f"{driver}-device", "id": name}
    return {"driver": f"{driver}-pci", "id": name, **where(layout, name)}


def where(layout: Layout, name: str) -> dict[str, Any]:
    """Return the bus and the address of a PCI device."""
    place = layout.places[name]
    function = f".{place.function:#x}" if place.function else ""
    return {
        "bus": place.bus_id,
        "addr": f"{place.slot:#x}{function}",
        "multifunction": True if place.announces_others else None,
    }
