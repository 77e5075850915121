"""The guest's own IOMMU (https://libvirt.org/formatdomain.html#iommu-devices)."""

from __future__ import annotations

from typing import Any, Final, Literal

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext, Order
from kvmhooks.machine.domain_reading import DomainReading, Tables
from kvmhooks.machine.element import Element, element

SLOT: Final = 0x1E

MOST_XAPIC: Final = 255
"""More vCPUs need x2APIC's addresses, and their interrupts remapping with them (``eim``)."""


@frozen(kw_only=True)
class Iommu(Device):
    """The guest's own IOMMU."""

    order = Order.TRANSLATION

    model: Literal["none", "intel", "virtio"] = "none"
    """intel: with interrupt remapping, which more than 255 vCPUs need; virtio."""

    @property
    def slot(self) -> int | None:
        """The slot of virtio-iommu; intel's is a part of the chipset."""
        return SLOT if self.model == "virtio" else None

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the device.

        intel-iommu remaps interrupts, which x2APIC addresses beyond 255 need, and with KVM only if
        the I/O APIC is in QEMU (docs/system/i386: ``kernel-irqchip=split``).
        """
        if self.model == "virtio":
            return option("device", context.plug("virtio-iommu", name))
        many = "on" if context.vcpus > MOST_XAPIC else None
        remapping = {"intremap": "on", "caching-mode": True, "eim": many}
        return option("device", {"driver": "intel-iommu", "id": f"{name}0", **remapping})

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<iommu>``."""
        if self.model == "virtio":
            return [element("iommu", {"model": "virtio"}, [context.address(name)])]
        many = "on" if context.vcpus > MOST_XAPIC else None
        driver = {"intremap": "on", "caching_mode": "on", "eim": many}
        return [element("iommu", {"model": "intel"}, [element("driver", driver)])]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[iommu]``."""
        found = reading.first("iommu", "model", {"intel": "intel", "virtio": "virtio"})
        if found is None:
            return {}
        driver = found[0].find("driver")
        if driver is not None:
            reading.expect(driver, {"intremap": "on"})
            reading.expect(driver, {"caching_mode": "on"})
            reading.decide_attribute(driver, "eim", "with more than 255 vCPUs")
        return {"iommu": {"model": found[1]}}
