"""A USB device of the host (https://libvirt.org/formatdomain.html#usb-pci-scsi-devices)."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext, Order
from kvmhooks.machine.element import Element, element
from kvmhooks.spec.forms import UsbId


@frozen(kw_only=True)
class HostUsb(Device):
    """A USB device of the host."""

    stem = "usb"
    switch = "id"
    order = Order.PLUGGED
    can_migrate = False

    id: UsbId
    """Vendor and product, as lsusb shows them."""

    def not_on_microvm(self) -> Iterator[str]:
        """Yield the whole table."""
        yield ""

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the device."""
        vendor, product = (int(half, 16) for half in self.id.split(":"))
        wanted = {"vendorid": vendor, "productid": product}
        return option(
            "device", {"driver": "usb-host", "id": name, **wanted, **context.on_usb(name)}
        )

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<hostdev>``."""
        vendor, product = self.id.split(":")
        ids = [element("vendor", {"id": f"0x{vendor}"}), element("product", {"id": f"0x{product}"})]
        kind = {"mode": "subsystem", "type": "usb", "managed": "yes"}
        children = [element("source", children=ids), context.usb_address(name)]
        return [element("hostdev", kind, children)]
