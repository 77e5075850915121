"""QEMU 10 for this machine: from backports, unpacked into the cache, not installed.

Its freezing to a file (``mapped-ram``), its igb and its interrupt remapping are newer than Debian
12's own QEMU 7.2. It runs with the libraries that Debian's qemu-system-x86 depends on.
"""

from __future__ import annotations

from functools import cache as memoised
from typing import TYPE_CHECKING

from . import cache, debian

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "qemu-utils", "seabios"]


@memoised
def unpacked() -> Path:
    """The directory that holds its ``usr``."""
    return cache.entry("qemu", cache.key_of(versions()), _fill)


@memoised
def versions() -> list[str]:
    """Return the versions of the packages that would be unpacked."""
    return debian.versions_of(PACKAGES, debian.BACKPORTS)


def program(name: str) -> Path:
    """The path of one of its programs."""
    return unpacked() / "usr" / "bin" / name


def firmware_options() -> list[str]:
    """Options by which it finds its own firmware rather than an older, installed one."""
    share = unpacked() / "usr" / "share"
    return ["-L", str(share / "qemu"), "-L", str(share / "seabios")]


def environment() -> dict[str, str]:
    """Variables by which it finds its own modules."""
    return {"QEMU_MODULE_DIR": str(unpacked() / "usr" / "lib" / "x86_64-linux-gnu" / "qemu")}


def _fill(into: Path) -> None:
    debian.unpack(PACKAGES, debian.BACKPORTS, into)
