"""A shared folder (virtiofs; https://libvirt.org/kbase/virtiofs.html).

virtiofsd serves it on a socket and maps the guest's memory; libvirt starts it itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext, Order
from kvmhooks.machine.domain_reading import DomainReading, Tables, fits, number
from kvmhooks.machine.element import Element, element
from kvmhooks.machine.qemu_features import Feature
from kvmhooks.machine.target import OLDEST_LIBVIRT, OLDEST_QEMU
from kvmhooks.spec.forms import Tag

VIRTIOFS: Final = Feature(
    "virtiofs", OLDEST_QEMU, OLDEST_LIBVIRT, domain="devices/filesystem/driverType=virtiofs"
)
READONLY: Final = Feature("virtiofs for reading only", OLDEST_QEMU, (11, 0))


@frozen(kw_only=True)
class Filesystem(Device):
    """A folder of the host that is shared with the guest."""

    stem = "fs"
    switch = "path"
    order = Order.FOLDER
    is_on_microvm = True
    can_migrate = False

    path: Path
    """The folder."""
    tag: Tag
    """Its name in the guest: mount -t virtiofs TAG /mnt."""
    queue_size: int | None = None
    """The number of requests that its queue holds; by default 1024 in libvirt, 128 else."""
    readonly: bool = False
    """The guest may not write to it (libvirt 11.0)."""

    def needs(self) -> Iterator[tuple[Feature, str, str]]:
        """Yield virtiofs, and what libvirt needs where nothing is written."""
        if self.readonly:
            yield READONLY, "readonly", "true"
        yield VIRTIOFS, "", "a shared folder"

    @property
    def is_express(self) -> bool:
        """It is a PCI Express device."""
        return True

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return virtiofsd's socket, and the device."""
        device = {
            **context.plug("vhost-user-fs", name),
            "chardev": f"{name}-socket",
            "tag": self.tag,
            "queue-size": self.queue_size,
        }
        socket = f"socket,id={name}-socket,path={context.socket(name)}"
        return ["-chardev", socket, *option("device", device)]

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<filesystem>``."""
        children = [
            element("driver", {"type": "virtiofs", "queue": self.queue_size}),
            element("source", {"dir": self.path}),
            element("target", {"dir": self.tag}),
            *([element("readonly")] if self.readonly else []),
            context.address(name),
        ]
        return [element("filesystem", {"type": "mount", "accessmode": "passthrough"}, children)]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[[filesystem]]``."""
        tables = []
        for shared in reading.root.all("devices/filesystem"):
            driver, source = shared.find("driver"), shared.find("source")
            target = shared.find("target")
            is_virtiofs = driver is not None and driver.get("type") == "virtiofs"
            tag = None if target is None else target.get("dir")
            if not is_virtiofs or source is None or not fits(Tag, tag):
                continue
            if source.get("dir") is None:
                continue
            reading.read(shared, "type", "accessmode")
            reading.read(driver, "type", "queue")
            reading.read(source, "dir")
            reading.read(target, "dir")
            table: Tables = {"path": source.get("dir"), "tag": tag}
            if driver.get("queue") is not None:
                table["queue_size"] = number(driver.get("queue", ""), f"{driver.path}@queue")
            readonly = shared.find("readonly")
            if readonly is not None:
                reading.read(readonly)
                table["readonly"] = True
            tables.append(table)
        return {"filesystem": tables} if tables else {}
