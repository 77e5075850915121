"""Sockets between guest and host (vhost-vsock; https://libvirt.org/formatdomain.html#vsock)."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext
from kvmhooks.machine.domain_reading import DomainReading, Tables, number
from kvmhooks.machine.element import Element, element
from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import Cid


@frozen(kw_only=True)
class Vsock(Device):
    """Sockets between the guest and the host."""

    switch = "enabled"
    is_on_microvm = True
    can_migrate = False

    enabled: bool = False
    """The device is there."""
    cid: Cid | None = enabled_by(on("enabled", True))
    """The guest's address; by default derived from the VM's UUID."""

    @property
    def is_express(self) -> bool:
        """It is a PCI Express device."""
        return True

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the device."""
        return option("device", {**context.plug("vhost-vsock", name), "guest-cid": context.cid})

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<vsock>``."""
        cid = element("cid", {"auto": "no", "address": context.cid})
        return [element("vsock", {"model": "virtio"}, [cid, context.address(name)])]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[vsock]``."""
        found = reading.first("vsock", "model", {"virtio": "virtio"})
        if found is None:
            return {}
        table: Tables = {"enabled": True}
        cid = found[0].find("cid")
        if cid is not None:
            reading.read(cid, "auto")
            if cid.get("auto", "no") == "no" and cid.get("address") is not None:
                reading.read(cid, "address")
                table["cid"] = number(cid.get("address", ""), f"{cid.path}@address")
        return {"vsock": table}
