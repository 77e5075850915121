"""Memory that a guest shares with a program of the host (ivshmem), as Looking Glass does.

QEMU maps a file of shared memory (docs/system/devices/ivshmem.rst, hw/misc/ivshmem.c). Its BAR has
a power of two for its size, and so wants libvirt, from 1 MiB on (``virDomainShmemDefParseXML()``;
https://libvirt.org/formatdomain.html#shared-memory-device). Without ``master=on`` QEMU refuses to
migrate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kvmhooks.errors import Problem
from kvmhooks.machine.arguments import option
from kvmhooks.machine.devices.device import Device, DeviceContext
from kvmhooks.machine.domain_reading import DomainReading, Tables, fits, number
from kvmhooks.machine.element import Element, element
from kvmhooks.machine.qemu_features import Feature
from kvmhooks.machine.target import OLDEST_LIBVIRT, OLDEST_QEMU
from kvmhooks.spec.forms import SharedName, UserName
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import ByteSize

IVSHMEM: Final = Feature("ivshmem", OLDEST_QEMU, OLDEST_LIBVIRT, "ivshmem-plain")
OWNER: Final = Feature("the owner of shared memory", OLDEST_QEMU, None)

FOLDER: Final = Path("/dev/shm")  # noqa: S108 -- libvirt knows no other (src/qemu/qemu_command.c)

SLOT: Final = 0x1A
"""It is no PCI Express device, so it stands on the root bus, above what stands for guest cells."""

_MIB: Final = 1 << 20
_UNITS: Final = {"KiB": 1 << 10, "K": 1 << 10, "MiB": _MIB, "M": _MIB, "GiB": 1 << 30, "G": 1 << 30}


@frozen(kw_only=True)
class SharedMemory(Device):
    """Memory that the guest shares with a program of the host: for Looking Glass (ivshmem)."""

    stem = "shmem"
    switch = ""
    can_migrate = False

    name: SharedName = SharedName("looking-glass")
    """The file in /dev/shm, which Looking Glass looks for by this name. It stays when the VM ends;
    of VMs that run at once each has its own."""
    size: ByteSize = ByteSize(32 * _MIB)
    """Its size, a power of two: 32MiB for a screen of 1920x1080, 64MiB for 2560x1440, 128MiB for
    3840x2160."""
    user: UserName | None = None
    """The user who views it, for kvm-launch: the file is his; by default it is QEMU's. Under
    libvirt systemd-tmpfiles can make such a file."""

    def is_there(self, spec: VmSpec) -> bool:
        """Return true: its table is there."""
        del spec
        return True

    def problems(self, spec: VmSpec, at: str) -> Iterator[Problem]:
        """Yield a size that no PCI device can have."""
        del spec
        size = int(self.size)
        if size < _MIB or size & (size - 1):
            yield Problem(f"{at}.size", repr(str(self.size)), "a power of two from 1MiB on")

    def needs(self) -> Iterator[tuple[Feature, str, str]]:
        """Yield the device, without which a QEMU may be built."""
        yield IVSHMEM, "", "memory that is shared with the host"

    def wants(self) -> Iterator[tuple[Feature, str]]:
        """Yield that the file has an owner."""
        if self.user is not None:
            yield OWNER, "user"

    @property
    def slot(self) -> int | None:
        """Its slot."""
        return SLOT

    def argv(self, context: DeviceContext, name: str) -> list[str]:
        """Return the file, and the device."""
        memory = f"{name}-memory"
        file = {
            "id": memory,
            "mem-path": str(FOLDER / self.name),
            "size": int(self.size),
            "share": True,
        }
        device = {"driver": "ivshmem-plain", "id": f"{name}0", **context.where(name)}
        return [
            *option("object", {"qom-type": "memory-backend-file", **file}),
            *option("device", {**device, "memdev": memory}),
        ]

    def xml(self, context: DeviceContext, name: str) -> list[Element]:
        """Return ``<shmem>``."""
        children = [
            element("model", {"type": "ivshmem-plain"}),
            element("size", {"unit": "M"}, text=int(self.size) // _MIB),
            context.address(name),
        ]
        return [element("shmem", {"name": self.name}, children)]

    @classmethod
    def read(cls, reading: DomainReading[Any]) -> Tables:
        """Return ``[shared_memory]`` of the first one that is plain."""
        for shared in reading.root.all("devices/shmem"):
            model, size = shared.find("model"), shared.find("size")
            is_plain = model is not None and model.get("type") == "ivshmem-plain"
            unit = None if size is None else _UNITS.get(size.get("unit", ""))
            if not is_plain or unit is None or not fits(SharedName, shared.get("name")):
                continue
            reading.read(shared, "name")
            reading.read(model, "type")
            reading.read(size, "unit")
            amount = ByteSize(number(size.text, size.path) * unit)
            return {"shared_memory": {"name": shared.get("name"), "size": str(amount)}}
        return {}
