"""Initramfs archives, written here: busybox, one script as init, and a few kernel modules.

The format is "newc" of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import gzip
import lzma
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def write(into: Path, *, init: Path, busybox: Path, modules: Path, wanted: Sequence[str]) -> None:
    """Write an archive with this init and, in load order, the wanted modules with what they need.

    ``modules`` is a ``/lib/modules/VERSION`` directory; a wanted module that is built into the
    kernel needs no file.
    """
    files = list(_load_order(modules, wanted))
    listed = "".join(f"{_plain_name(file)}\n" for file in files)
    archive = _Archive()
    for directory in ("bin", "dev", "proc", "sys", "newroot", "lib", "lib/modules"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    archive.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    archive.add("init", stat.S_IFREG | 0o755, init.read_bytes())
    archive.add("modules", stat.S_IFREG | 0o644, listed.encode())
    for file in files:
        archive.add(f"lib/modules/{_plain_name(file)}", stat.S_IFREG | 0o644, _module(file))
    into.write_bytes(gzip.compress(archive.finish(), compresslevel=1, mtime=0))


class _Archive:
    """A newc archive that grows."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._count = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        """One file, directory or link."""
        self._count += 1
        encoded = name.encode() + b"\0"
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields)
        self._data += encoded + bytes(-(110 + len(encoded)) % 4)
        self._data += content + bytes(-len(content) % 4)

    def finish(self) -> bytes:
        """The archive with its trailer."""
        self.add("TRAILER!!!", 0)
        return bytes(self._data)


def _load_order(modules: Path, wanted: Sequence[str]) -> Iterator[Path]:
    """Files to load, dependencies first, each once (see ``man 5 modules.dep``)."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[_module_name(Path(file))] = [file, *rest.split()]
    builtin = {
        _module_name(Path(line)) for line in (modules / "modules.builtin").read_text().splitlines()
    }
    seen = set()
    for name in wanted:
        if name in builtin:
            continue
        if name not in needs:
            raise LabError(f"kernel {modules.name} has no module {name}")
        for file in reversed(needs[name]):  # the file lists the module first, its needs after it
            if file not in seen:
                seen.add(file)
                yield modules / file


def _module_name(file: Path) -> str:
    return file.name.partition(".ko")[0].replace("-", "_")


def _plain_name(file: Path) -> str:
    return file.name.partition(".ko")[0] + ".ko"


def _module(file: Path) -> bytes:
    """A module's bytes, unpacked: busybox loads no compressed ones."""
    return lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
