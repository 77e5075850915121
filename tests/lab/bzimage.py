"""The kernel inside a bzImage: unpacked once here, not by every guest under emulation.

QEMU starts such an ELF file by its PVH entry (``load_elfboot()``, hw/i386/x86.c),
which Debian's kernels have. The header is that of the kernel's Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import lzma
import struct
import subprocess
from typing import TYPE_CHECKING

from .errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

SECTOR = 512
SETUP_SECTS, MAGIC, PAYLOAD = 0x1F1, 0x202, 0x248
XZ, ZSTD = b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"


def unpack(image: Path, into: Path) -> None:
    """Write the ELF file that is packed in a bzImage.

    Raises:
        LabError: It is no bzImage, or packed neither by xz nor by zstd.
    """
    data = image.read_bytes()
    if data[MAGIC : MAGIC + 4] != b"HdrS":
        raise LabError(f"{image} is no bzImage")
    offset, length = struct.unpack_from("<II", data, PAYLOAD)
    start = (data[SETUP_SECTS] + 1) * SECTOR + offset
    payload = data[start : start + length]  # its last four bytes are the kernel's size
    if payload.startswith(XZ):
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(ZSTD):
        zstd = subprocess.run(["zstd", "-dc"], input=payload[:-4], capture_output=True, check=True)
        kernel = zstd.stdout
    else:
        raise LabError(f"{image} is packed in a way that is not known here: {payload[:6]!r}")
    into.write_bytes(kernel)
