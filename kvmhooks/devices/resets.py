"""The reset of a device between two VMs, and what else is reset with it. Pure.

The names of the methods are those of ``reset_method`` (Documentation/ABI/testing/sysfs-bus-pci,
kernel 5.15). A bus is reset only for a device that is alone on it, and never a root bus
(``pci_parent_bus_reset()``, drivers/pci/pci.c). The first function of a bus is asked before the
others are found, so it has ``bus`` among its methods in any case, which then does nothing for it.
VFIO resets a whole bus as well, once the VM has everything on it (``VFIO_DEVICE_PCI_HOT_RESET``,
drivers/vfio/pci/vfio_pci_core.c), and QEMU asks for that where a device cannot be reset by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from kvmhooks.values import PciAddress

if TYPE_CHECKING:
    from kvmhooks.host.bus.devices import PciDevice

Kind = Literal["function", "bus", "none", "unknown"]

_OF_BUS: Final = frozenset({"bus", "cxl_bus"})
"""The methods that reset all that is on a bus."""


@frozen
class Reset:
    """The reset of a device."""

    kind: Kind
    """``function``: by itself; ``bus``: with its bus; ``none``: not at all; ``unknown``: the kernel
    (before 5.15) does not say how."""
    methods: tuple[str, ...] = ()
    """The methods that the kernel tries, in this order."""
    shared_with: tuple[PciAddress, ...] = ()
    """The others that are reset with its bus: VFIO does it only for a VM that has all of them."""


def reset_of(device: PciDevice, devices: Iterable[PciDevice]) -> Reset:
    """Return the reset of ``device``; ``devices`` are all of its host, bridges too."""
    methods = device.reset_methods
    if methods is None and device.can_reset is not False:
        return Reset("unknown")
    methods = methods or ()
    if not _OF_BUS.issuperset(methods):
        return Reset("function", methods)
    beside = [other for other in devices if _is_on_bus_of(device, other)]
    can_reset_bus = any(
        not _OF_BUS.isdisjoint(neighbour.reset_methods or ()) for neighbour in beside
    )
    others = tuple(
        sorted(neighbour.address for neighbour in beside if neighbour.address != device.address)
    )
    return Reset("bus", methods, others) if can_reset_bus else Reset("none")


def sentences_about(reset: Reset, given: Iterable[PciAddress] = ()) -> Iterator[str]:
    """Yield what a person should know of it; ``given`` is what the VM has beside the device."""
    if reset.kind == "none":
        yield "cannot be reset: after a VM it may not work again before the host restarts"
    elif reset.kind == "bus" and not reset.shared_with:
        yield "is reset with its bus, on which it is alone"
    elif reset.kind == "bus":
        others = ", ".join(map(str, reset.shared_with))
        if set(reset.shared_with) <= {*given}:
            yield f"is reset with its whole bus, so together with {others}"
        else:
            yield (
                f"is reset only with its whole bus, so together with {others}: a VM that has not "
                "all of them leaves it as it is for the next"
            )


def _is_on_bus_of(device: PciDevice, other: PciDevice) -> bool:
    return (device.address.domain, device.address.bus) == (other.address.domain, other.address.bus)
