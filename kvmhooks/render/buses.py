"""Where each PCI device of the guest is plugged in: a PCI Express root port of its own.

Both renderings take their addresses from here, so that the guest sees the same machine.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from kvmhooks.placement.model import Plan

FIRST_SLOT: Final = 1
"""Slot 0 of q35's root bus is the host bridge; 1 to 0x1e are free (hw/i386/pc_q35.c)."""

FUNCTIONS: Final = 8


@frozen
class Port:
    """One ``pcie-root-port`` with the device behind it."""

    device: str
    """The id of the device, such as ``disk0``."""
    index: int
    """The number of its bus, from 1: QEMU's id is ``pci.1``, libvirt's bus ``0x01``."""

    @property
    def bus(self) -> str:
        """The id of the bus."""
        return f"pci.{self.index}"

    @property
    def slot(self) -> int:
        """The slot on the root bus; eight ports share one."""
        return FIRST_SLOT + (self.index - 1) // FUNCTIONS

    @property
    def function(self) -> int:
        """The function in that slot."""
        return (self.index - 1) % FUNCTIONS

    @property
    def announces_others(self) -> bool:
        """Whether it is function 0, which says that its slot has others."""
        return self.function == 0

    @property
    def number(self) -> int:
        """The port's own number: slot and function, as a real one would have."""
        return self.slot << 3 | self.function


def ports(plan: Plan) -> tuple[Port, ...]:
    """A port for each PCI device of the plan: interfaces, disks, then the virtio console."""
    devices = [f"net{index}" for index in range(len(plan.spec.net))]
    devices += [f"disk{index}" for index in range(len(plan.spec.disk))]
    if plan.spec.console.type == "virtio":
        devices.append("serial0")
    return tuple(Port(device, index) for index, device in enumerate(devices, 1))


def port_of(plan: Plan, device: str) -> Port:
    """The port of one device. Raises ``KeyError`` for one that has none."""
    return {port.device: port for port in ports(plan)}[device]
