"""The devices that a VM has, of those that have a file of their own (``kvmhooks.spec.device``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from attrs import frozen

from kvmhooks.spec.device import device_class, registered
from kvmhooks.spec.model import VmSpec

if TYPE_CHECKING:
    from kvmhooks.machine.devices.device import Device, Order

DEVICES: Final = registered(VmSpec)
"""The devices that there are, in the order of their tables."""


@frozen
class PresentDevice:
    """A device that a VM has."""

    table: str
    """The name of its table."""
    at: str
    """The path of its table: ``watchdog``, ``input[0]``."""
    id: str
    """Its name among the guest's devices: ``watchdog``, ``input0``."""
    device: Device

    @property
    def key(self) -> str:
        """The path of the key without which it would not be there."""
        is_listed = self.at != self.table
        return self.path_of("" if is_listed else self.device.switch)

    def path_of(self, key: str) -> str:
        """Return the path of a key of its table, or of the table."""
        return f"{self.table}.{key}" if key else self.table


def devices_of(spec: VmSpec) -> Iterator[PresentDevice]:
    """Yield the devices that a VM has, in the order of their tables."""
    for name in DEVICES:
        yield from those_of(spec, name)


def those_of(spec: VmSpec, name: str) -> Iterator[PresentDevice]:
    """Yield the devices of one table that a VM has."""
    value = getattr(spec, name)
    if isinstance(value, tuple):
        for at, each in enumerate(value):
            yield PresentDevice(name, f"{name}[{at}]", f"{each.stem or name}{at}", each)
        return
    if value is None and any(getattr(spec, other) for other in DEVICES[name].implied_by):
        value = device_class(name)()
    if value is not None and value.is_there(spec):
        yield PresentDevice(name, name, value.stem or name, value)


def in_order(spec: VmSpec, *orders: Order) -> list[PresentDevice]:
    """Return the devices of some kinds, or of all, in the order in which they are written."""
    there = [each for each in devices_of(spec) if not orders or each.device.order in orders]
    return sorted(there, key=lambda each: each.device.order)


def has_device(spec: VmSpec, name: str) -> bool:
    """Return whether a VM has the device, or one, of a table."""
    return any(those_of(spec, name))
