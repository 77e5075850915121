"""A keyboard, mouse or tablet (https://libvirt.org/formatdomain.html#input-devices)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from attrs import frozen

from kvmhooks.errors import Problem
from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext, Order
from kvmhooks.machine.domain_reading import DomainReading, Tables
from kvmhooks.machine.element import Element, element
from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.model import VmSpec

_USB: Final = {"tablet": "usb-tablet", "mouse": "usb-mouse", "keyboard": "usb-kbd"}


@frozen(kw_only=True)
class Input(Device):
    """A keyboard, mouse or tablet."""

    switch = "type"
    order = Order.PLUGGED

    type: Literal["tablet", "mouse", "keyboard", "evdev"] = "tablet"
    """tablet: a pointer that needs not be caught; evdev: a device of the host."""
    bus: Literal["usb", "virtio"] = enabled_by(
        on("type", "tablet", "mouse", "keyboard"), default="usb"
    )
    """The bus that it is attached to."""
    path: Path | None = enabled_by(on("type", "evdev"))
    """The device of evdev: /dev/input/by-id/..."""

    @property
    def is_on_usb(self) -> bool:
        """It is plugged into the controller: a device of the host is no device of its own."""
        return self.bus == "usb" and self.type != "evdev"

    def problems(self, spec: VmSpec, at: str) -> Iterator[Problem]:
        """Yield a device of the host that is not named."""
        del spec
        if self.type == "evdev" and self.path is None:
            yield Problem(f"{at}.path", "nothing", 'the device of the host: type is "evdev"')

    def not_on_microvm(self) -> Iterator[str]:
        """Yield the whole table."""
        yield ""

    @property
    def is_express(self) -> bool:
        """Virtio's is a PCI Express device."""
        return self.bus == "virtio" and self.type != "evdev"

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the device, or the object that reads the host's."""
        if self.type == "evdev":
            taken = {"evdev": str(self.path), "grab_all": True, "repeat": True}
            return option("object", {"qom-type": "input-linux", "id": name, **taken})
        if self.bus == "virtio":
            return option("device", context.plug(f"virtio-{self.type}", name))
        return option("device", {"driver": _USB[self.type], "id": name, **context.on_usb(name)})

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<input>``."""
        if self.type == "evdev":
            taken = {"dev": self.path, "grab": "all", "repeat": "on"}
            return [element("input", {"type": "evdev"}, [element("source", taken)])]
        where = context.usb_address(name) if self.is_on_usb else context.address(name)
        return [element("input", {"type": self.type, "bus": self.bus}, [where])]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[[input]]``."""
        tables: list[Tables] = []
        for device in reading.root.all("devices/input"):
            kind, bus = device.get("type"), device.get("bus", "usb")
            if kind in {"tablet", "mouse", "keyboard"} and bus in {"usb", "virtio"}:
                reading.read(device, "type", "bus")
                tables.append({"type": kind, "bus": bus})
            elif kind == "evdev" and (source := device.find("source")) is not None:
                reading.read(device, "type")
                reading.read(source, "dev")
                reading.expect(source, {"grab": "all", "repeat": "on"})
                tables.append({"type": kind, "path": source.get("dev", "")})
            elif kind in {"mouse", "keyboard"} and bus == "ps2":
                reading.decide(device, "devices/input[ps2]", "every PC has them")
        return {"input": tables} if tables else {}
