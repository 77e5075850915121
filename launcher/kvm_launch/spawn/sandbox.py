"""The host's files that a QEMU may write: pure, but for links that are followed.

As root kvm-launch gives QEMU a mount namespace of its own in which all else is read-only
(mount_namespaces(7), mount_setattr(2)). A disk that it has open already needs no room there.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

from kvmhooks.spec.model import VmSpec

ALWAYS: Final = (Path("/dev"), Path("/tmp"), Path("/var/tmp"))  # noqa: S108 -- QEMU's own, by name
"""Devices, shared memory and huge pages; and where QEMU keeps what a disk of ``snapshot`` wrote."""


def writable(spec: VmSpec, opened: Container[int] = ()) -> list[Path]:
    """Return the directories, none of them below another, in which QEMU has something to write.

    ``opened`` are the indices of disks that are open before it starts.
    """
    files = {_resolved(path).parent for path in _files(spec, opened)}
    found = sorted({*ALWAYS, *files, *_folders(spec)})
    return [path for path in found if not any(above in found for above in path.parents)]


def _files(spec: VmSpec, opened: Container[int]) -> Iterator[Path]:
    for index, disk in enumerate(spec.disk):
        if not disk.readonly and index not in opened:
            yield disk.path
    if spec.boot.variables is not None:
        yield spec.boot.variables
    for net in spec.net:
        if net.socket is not None and net.server:
            yield net.socket


def _folders(spec: VmSpec) -> Iterator[Path]:
    if spec.memory.path is not None:
        yield _resolved(spec.memory.path)
    for folder in spec.run.writable:
        yield _resolved(folder)


def _resolved(path: Path) -> Path:
    """Follow links; of one that leads to itself ``Path.resolve`` would make an error."""
    return Path(os.path.realpath(path))
