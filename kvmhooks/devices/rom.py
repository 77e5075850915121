"""Option ROMs: whether a file is one, and of which device.

The layout is that of the PCI Firmware Specification 3.3, section 5.1 («PCI Expansion ROM Header
Format», «PCI Data Structure Format»): each image starts with 55 aa and has at 0x18 the place of its
data structure, which starts with ``PCIR`` and names vendor and device. Firmware passes over an
image that names another device, so such a file does nothing in the guest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

from kvmhooks.errors import HostError

MAX_BYTES: Final = 16 << 20
"""The largest that a BAR for it may be (PCI Local Bus Specification 3.0, 6.2.5.2)."""

_SIGNATURE: Final = b"\x55\xaa"
_BLOCK: Final = 512
_HEADER: Final = 0x1A
_STRUCTURE: Final = 0x18
"""The length of the data structure that has to be there."""
_LAST: Final = 0x80
_CODES: Final = {0: "BIOS", 1: "Open Firmware", 2: "PA-RISC", 3: "UEFI"}


@frozen
class Image:
    """One of the programs in a ROM."""

    vendor: int
    devices: tuple[int, ...]
    """The devices that it is for: that of its header, and those of its list (PCI 3.0)."""
    code: str
    """The firmware that runs it: ``BIOS``, ``UEFI``, …"""

    def __str__(self) -> str:
        return f"{self.code} image for {self.vendor:04x}:{self.devices[0]:04x}"


def read_rom(path: Path) -> tuple[Image, ...]:
    """Return the images of a ROM file. Raises ``HostError`` for none, or one too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise HostError(f"{path}: found no file, expected one with an option ROM")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}, expected a file with an option ROM") from error
    return parse_rom(path, data)


def parse_rom(path: Path, data: bytes) -> tuple[Image, ...]:
    """Return the images of what was read of a ROM file. Raises ``HostError``, as ``read_rom``."""
    if len(data) > MAX_BYTES:
        raise HostError(f"{path}: found more than {MAX_BYTES >> 20} MiB, expected an option ROM")
    try:
        return tuple(images_of(data))
    except ValueError as error:
        raise HostError(f"{path}: {error}") from error


def images_of(data: bytes) -> Iterator[Image]:
    """Yield each image, in order. Raises ``ValueError`` with what is wrong and where."""
    start = 0
    while True:
        found = data[start : start + 2]
        if found != _SIGNATURE:
            beginning = found.hex(" ") or "the end of the file"
            raise ValueError(
                f"found {beginning} at {start:#x}, expected 55 aa, where an image starts"
            )
        place = start + _number(data, start + 0x18, start + _HEADER)
        if data[place : place + 4] != b"PCIR" or len(data) < place + _STRUCTURE:
            raise ValueError(f"found no PCIR at {place:#x}, where the image at {start:#x} has it")
        yield _image(data, place)
        length = _number(data, place + 0x10, place + 0x12) * _BLOCK
        if data[place + 0x15] & _LAST:
            return
        if not length:
            raise ValueError(f"found an image of length 0 at {start:#x}, expected one more after")
        start += length


def mismatch(images: tuple[Image, ...], vendor: str | None, device: str | None) -> str:
    """Return why no image of a ROM is for a device (ids as the kernel writes them), or nothing."""
    if vendor is None or device is None:
        return ""
    wanted = int(vendor, 16), int(device, 16)
    if any(image.vendor == wanted[0] and wanted[1] in image.devices for image in images):
        return ""
    found = ", ".join(map(str, images))
    return f"found {found}, expected one for {wanted[0]:04x}:{wanted[1]:04x}"


def _image(data: bytes, place: int) -> Image:
    vendor = _number(data, place + 4, place + 6)
    devices = [_number(data, place + 6, place + 8)]
    more, revision = _number(data, place + 8, place + 10), data[place + 0x0C]
    if revision >= 3 and more:  # before, the VPD stood there, and nothing uses that
        at = place + more
        while at + 2 <= len(data) and (device := _number(data, at, at + 2)):
            devices.append(device)
            at += 2
    code = data[place + 0x14]
    return Image(vendor, tuple(devices), _CODES.get(code, f"code {code}"))


def _number(data: bytes, start: int, end: int) -> int:
    if end > len(data):
        raise ValueError(f"found its end at {len(data):#x}, expected more of the image")
    return int.from_bytes(data[start:end], "little")
