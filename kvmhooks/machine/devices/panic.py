"""The panic device (pvpanic; https://libvirt.org/formatdomain.html#panic-device)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext
from kvmhooks.machine.domain_reading import DomainReading, Tables
from kvmhooks.machine.element import Element, element
from kvmhooks.machine.qemu_features import Feature
from kvmhooks.machine.target import OLDEST_QEMU

PCI: Final = Feature("pvpanic-pci", OLDEST_QEMU, (9, 1), domain="devices/panic/model=pvpanic")

SLOT: Final = 0x1D


@frozen(kw_only=True)
class Panic(Device):
    """A device by which a guest tells that its kernel has crashed."""

    model: Literal["none", "isa", "pci"] = "none"
    """isa: a port; pci: a PCI device (libvirt 9.1)."""

    def needs(self) -> Iterator[tuple[Feature, str, str]]:
        """Yield what libvirt needs for the PCI device."""
        if self.model == "pci":
            yield PCI, "model", '"pci"'

    @property
    def slot(self) -> int | None:
        """The slot of the PCI device."""
        return SLOT if self.model == "pci" else None

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the device, or the port."""
        if self.model == "isa":
            return option("device", {"driver": "pvpanic"})
        return option("device", {"driver": "pvpanic-pci", "id": name, **context.where(name)})

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<panic>``."""
        if self.model == "isa":
            return [element("panic", {"model": "isa"})]
        return [element("panic", {"model": "pvpanic"}, [context.address(name)])]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[panic]``."""
        found = reading.first("panic", "model", {"isa": "isa", "pvpanic": "pci"})
        return {} if found is None else {"panic": {"model": found[1]}}
