"""The images that QEMU does not open itself: it has them open before its first instruction.

So QEMU needs no right to the paths of its disks. An image is opened as the user who QEMU will be,
for that one could have put a link in its place, or written another base into it. A raw one, or a
disk of the host, is opened as root where nobody but root can have put it there. Formats are on
record, never guessed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen

from kvm_launch.prepare.images import QEMU_IMG, info
from kvm_launch.prepare.user import User
from kvmhooks.closed import settled
from kvmhooks.errors import LaunchError
from kvmhooks.qemu.passed_images import Opened
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.storage import Disk

DEEPEST: Final = 64
"""The number of images that may be built on each other."""


@frozen
class Layer:
    """An image to open: a disk's own, or what it is built on."""

    path: Path
    format: str
    is_written: bool
    is_roots: bool
    """It is opened as who we are, whatever the user of QEMU."""

    @property
    def flags(self) -> int:
        """The flags for open(2); QEMU sets O_DIRECT itself where it is asked to."""
        return os.O_RDWR if self.is_written else os.O_RDONLY


@frozen
class Unopened:
    """The reason why QEMU opens a disk itself."""

    at: str
    why: str


def layers_of(spec: VmSpec, user: User | None) -> tuple[dict[int, list[Layer]], list[Unopened]]:
    """Return the images of each disk by its index, its own first, and the disks that stay QEMU's.

    Of those that are not to be passed nothing is told. Raises ``LaunchError`` when qemu-img does
    not answer.
    """
    found: dict[int, list[Layer]] = {}
    left: list[Unopened] = []
    for index, disk in enumerate(spec.disk):
        if not disk.passed:
            continue
        has_tool = disk.format == "raw" or QEMU_IMG.exists()
        chain = _chain(disk, user) if has_tool else f"{QEMU_IMG} is not there (qemu-utils)"
        if isinstance(chain, str):
            left.append(Unopened(f"disk[{index}].path", chain))
        else:
            found[index] = chain
    return found, left


def numbered(
    layers: Mapping[int, Sequence[Layer]], first: int
) -> tuple[dict[int, list[Opened]], dict[int, Layer]]:
    """Return the images as QEMU knows them, by numbers from ``first`` on, and the files there."""
    images: dict[int, list[Opened]] = {}
    files: dict[int, Layer] = {}
    for index, chain in layers.items():
        for layer in chain:
            number = first + len(files)
            files[number] = layer
            opened = Opened(number, layer.format, is_block_device(layer.path))
            images.setdefault(index, []).append(opened)
    return images, files


def roots_path(disk: Disk) -> Path | None:
    """Return the path without links at which root opens a disk for another user; None: he does.

    Nobody else can have put it there (``kvm_launch.prepare.paths``), nor written a base into it.
    """
    return settled(disk.path) if disk.passed and disk.format == "raw" else None


def is_block_device(path: Path) -> bool:
    """Return whether it is one now; a path that cannot be looked at is none."""
    with suppress(OSError):
        return stat.S_ISBLK(path.stat().st_mode)
    return False


def _chain(disk: Disk, user: User | None) -> list[Layer] | str:
    """Return a disk's image and what it is built on, or why QEMU opens them itself."""
    found = None if user is None else roots_path(disk)
    is_roots = found is not None
    layer = Layer(found or disk.path, disk.format, not disk.readonly, is_roots)
    chain = [layer]
    while layer.format == "qcow2":
        layers = info(layer.path, layer.format, user)
        if isinstance(layers, str):
            raise LaunchError(f"{layer.path}: {layers}")
        if layers.get("format-specific", {}).get("data", {}).get("data-file"):
            return f"{layer.path} keeps its data in another file"
        if layers.get("backing-filename") is None:
            break
        base = str(layers.get("full-backing-filename", layers["backing-filename"]))
        kind = layers.get("backing-filename-format")
        if not base.startswith("/"):
            return f"{layer.path} is built on {base!r}, which is no file"
        if kind not in {"raw", "qcow2"}:
            known = f"of format {kind}" if kind else "whose format it does not say"
            return f"{layer.path} is built on {base!r}, {known} (qemu-img rebase -u -F)"
        if len(chain) == DEEPEST:
            return f"more than {DEEPEST} images are built on each other"
        layer = Layer(Path(base), kind, is_written=False, is_roots=False)
        chain.append(layer)
    return chain
