"""A device's driver, its id, and where it is plugged in, as a plan has it."""

from __future__ import annotations

from typing import Any

from kvmhooks.machine import arguments
from kvmhooks.placement.model import Plan


def plug(plan: Plan, driver: str, name: str) -> dict[str, Any]:
    """Return the first properties of a virtio device ``name``: on PCI, or on microvm's own bus."""
    on_pci = plan.spec.machine.type != "microvm"
    return arguments.plug(plan.hardware.layout, driver, name, on_pci=on_pci)


def where(plan: Plan, name: str) -> dict[str, Any]:
    """Return the bus and the address of a PCI device."""
    return arguments.where(plan.hardware.layout, name)
