"""The watchdog.

https://libvirt.org/formatdomain.html#watchdog-devices; QEMU has ``-action watchdog=``
(qapi/run-state.json, ``WatchdogAction``).
"""

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
from kvmhooks.spec.enabling import enabled_by

ITCO: Final = Feature("a working iTCO watchdog", OLDEST_QEMU, (9, 1))

SLOT: Final = 0x1C


@frozen(kw_only=True)
class Watchdog(Device):
    """A device that resets a guest that hangs."""

    model: Literal["none", "i6300esb", "itco"] = "none"
    """i6300esb: a PCI device; itco: the one of q35 itself."""
    action: Literal["reset", "poweroff", "pause", "none", "inject-nmi"] = enabled_by(
        "model", default="reset"
    )
    """The action that follows."""

    def needs(self) -> Iterator[tuple[Feature, str, str]]:
        """Yield what libvirt needs for the chipset's own one."""
        if self.model == "itco":
            yield ITCO, "model", '"itco"'

    @property
    def slot(self) -> int | None:
        """The slot of the PCI device."""
        return SLOT if self.model == "i6300esb" else None

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the device; q35's own is there in any case, switched off by the chipset."""
        if self.model == "itco":
            device = ["-global", "ICH9-LPC.noreboot=off"]
        else:
            device = option("device", {"driver": "i6300esb", "id": name, **context.where(name)})
        return [*device, "-action", f"watchdog={self.action}"]

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<watchdog>``."""
        where = [context.address(name)] if self.model == "i6300esb" else []
        return [element("watchdog", {"model": self.model, "action": self.action}, where)]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[watchdog]``."""
        found = reading.first("watchdog", "model", {"i6300esb": "i6300esb", "itco": "itco"})
        if found is None:
            return {}
        table = {"model": found[1]}
        action = found[0].get("action", "reset")
        if action in {"reset", "poweroff", "pause", "none", "inject-nmi"}:
            reading.read(found[0], "action")
            table["action"] = action
        return {"watchdog": table}
