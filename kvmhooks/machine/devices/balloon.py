"""The balloon (virtio-balloon; https://libvirt.org/formatdomain.html#memory-balloon-device)."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext
from kvmhooks.machine.domain_reading import DomainReading, Tables
from kvmhooks.machine.element import Element, element
from kvmhooks.spec.enabling import enabled_by, on

_SWITCHES: Final = {
    "autodeflate": "deflate_on_oom",
    "freePageReporting": "free_page_reporting",
}
"""libvirt's attributes, and the keys."""


@frozen(kw_only=True)
class Balloon(Device):
    """Memory that the guest gives back."""

    switch = "enabled"
    is_on_microvm = True

    enabled: bool = False
    """The balloon is there."""
    free_page_reporting: bool = enabled_by(on("enabled", True), default=False)
    """The guest tells of free pages, so that the host can use them."""
    deflate_on_oom: bool = enabled_by(on("enabled", True), default=False)
    """It gives memory back to a guest that has none left."""

    @property
    def is_express(self) -> bool:
        """It is a PCI Express device."""
        return True

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the device."""
        return option(
            "device",
            {
                **context.plug("virtio-balloon", name),
                "deflate-on-oom": True if self.deflate_on_oom else None,
                "free-page-reporting": True if self.free_page_reporting else None,
            },
        )

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<memballoon>``."""
        switches = {word: "on" for word, key in _SWITCHES.items() if getattr(self, key)}
        attributes = {"model": "virtio", **switches}
        return [element("memballoon", attributes, [context.address(name)])]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[balloon]``."""
        found = reading.first("memballoon", "model", {"virtio": "virtio"})
        if found is None:
            return {}
        table: Tables = {"enabled": True}
        for word, key in _SWITCHES.items():
            if found[0].get(word) in {"on", "off"}:
                reading.read(found[0], word)
                table[key] = found[0].get(word) == "on"
        return {"balloon": table}
