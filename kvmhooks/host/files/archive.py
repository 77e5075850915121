"""Read a captured tree from a tar file that somebody sent, into memory: nothing is unpacked.

So nothing is written, whatever the entries say, and nothing is left whenever a signal comes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import zlib
from typing import BinaryIO, Final, TypeAlias

from kvmhooks.errors import HostError, words_of
from kvmhooks.host.files.tar import (
    DIRECTORY,
    FILE,
    HARD_LINK,
    LINK,
    Entry,
    Stream,
    TarError,
    entries,
)

Folder: TypeAlias = "dict[str, Node]"
Node: TypeAlias = "Folder | bytes | str"
"""A directory by what is in it, a file by its bytes, a link by where it leads."""

_NODES_LIMIT: Final = 1_000_000
"""Twice what a capture of 8,192 CPUs has; of entries, and of what they make with what is above."""
_CONTENT_LIMIT: Final = 512 << 20
"""Bytes of all files: of 8,192 CPUs with 2,000 interrupts ``/proc/interrupts`` alone has 180 MB."""
_PACKED_LIMIT: Final = 64 << 20
"""Bytes of a compressed archive."""
_LZMA_LIMIT: Final = 128 << 20
"""Bytes of memory to decompress it in: ``xz -9`` needs 65 MiB (xz(1), «-9»)."""
_CHUNK: Final = 1 << 16
_CUT_OFF: Final = "Compressed file ended before the end-of-stream marker was reached"
"""In the words of gzip and bz2."""
_DEPTH_LIMIT: Final = 64
_NAME_LIMIT: Final = 255
_TARGET_LIMIT: Final = 4096
"""Bytes: ``NAME_MAX`` and ``PATH_MAX``, include/uapi/linux/limits.h."""

_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def read_archive(file: str | os.PathLike[str]) -> Folder:
    """Return the directory that holds ``sys`` or ``proc`` in a tar file.

    Raises ``HostError`` for what is no whole tar file of a host, or is larger than any.
    """
    try:
        with os.fdopen(os.open(file, _FLAGS), "rb") as packed:
            if not stat.S_ISREG(os.fstat(packed.fileno()).st_mode):
                raise HostError(f"{os.fspath(file)}: found no regular file, expected a tar file")
            tree = _read(packed)
    except (TarError, OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno:
            raise HostError(f"{os.fspath(file)}: cannot be read: {error.strerror}") from error
        why = words_of(error) or "it needs more memory than there is"  # MemoryError has no words
        raise HostError(f"{os.fspath(file)}: no tar file of a host: {why}") from error
    # Some archives have the tree below one directory.
    inner = list(tree.items())
    if len(inner) == 1 and inner[0][0] not in {"sys", "proc"} and isinstance(inner[0][1], dict):
        tree = inner[0][1]
    if not any(isinstance(tree.get(part), dict) for part in ("sys", "proc")):
        raise HostError(f"{os.fspath(file)}: holds neither sys nor proc, so it is no host")
    return tree


def _read(packed: BinaryIO) -> Folder:
    opened = _decompressed(packed)
    if opened is None:
        return _tree_of(packed)
    size = os.fstat(packed.fileno()).st_size
    if size > _PACKED_LIMIT:
        raise TarError(f"found {size} bytes, expected at most {_PACKED_LIMIT} when compressed")
    return _tree_of(opened)


def _decompressed(packed: BinaryIO) -> Stream | None:
    """Return what a compressed file holds, told by its first bytes as file(1) does; else None."""
    start = packed.read(6)
    packed.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=packed)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(packed)
    if start.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return _Lzma(packed)
    return None


class _Lzma:
    """The content of .xz or .lzma files in a row: ``LZMAFile`` has no bound of memory."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._decompressor = lzma.LZMADecompressor(memlimit=_LZMA_LIMIT)

    def read(self, size: int, /) -> bytes:
        """Return so many bytes; fewer at the end only. Raises ``LZMAError`` and ``EOFError``."""
        parts = []
        while size > 0:
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data or self._packed.read(_CHUNK)
                if not data:
                    break
                self._decompressor = lzma.LZMADecompressor(memlimit=_LZMA_LIMIT)
            elif self._decompressor.needs_input:
                data = self._packed.read(_CHUNK)
                if not data:
                    raise EOFError(_CUT_OFF)
            parts.append(self._decompressor.decompress(data, size))
            size -= len(parts[-1])
        return b"".join(parts)


def _tree_of(stream: Stream) -> Folder:
    tree = Growing()
    for entry in entries(stream, _CONTENT_LIMIT):
        tree.add(entry)
    return tree.top


class Growing:
    """A tree to which entries are added; each name is one thing, and below a directory."""

    def __init__(self, limit: int = _NODES_LIMIT) -> None:
        self.top: Folder = {}
        self._limit = limit
        self._entries = 0
        self._nodes = 0

    def add(self, entry: Entry) -> None:
        """Add what an entry is; devices, FIFOs and what else tells nothing are left out.

        Raises ``TarError`` where it leads out of the tree, through a link, or contradicts another.
        """
        self._entries = self._counted(self._entries)
        *above, name = _parts(entry.name) or [""]
        if not name or entry.kind not in {DIRECTORY, FILE, LINK, HARD_LINK}:
            return
        folder = self._folder(above, entry.name)
        if entry.kind == DIRECTORY:
            self._place(folder, name, {}, entry.name)
        elif entry.kind == FILE:
            self._place(folder, name, entry.content, entry.name)
        elif entry.kind == LINK:
            self._place(folder, name, _target(entry), entry.name)
        else:
            self._place(folder, name, self._linked(entry), entry.name)

    def _folder(self, parts: list[str], whole: str) -> Folder:
        folder = self.top
        for part in parts:
            folder = self._below(folder, part, whole)
        return folder

    def _below(self, folder: Folder, part: str, whole: str) -> Folder:
        if part not in folder:
            self._place(folder, part, {}, whole)
        below = folder[part]
        if not isinstance(below, dict):
            raise TarError(
                f"found {shown(whole)} below {_KINDS[type(below)]}, expected a directory there"
            )
        return below

    def _place(self, folder: Folder, name: str, node: Node, whole: str) -> None:
        before = folder.get(name)
        if before is None:
            self._nodes = self._counted(self._nodes)
        elif type(before) is not type(node):
            raise TarError(
                f"found {shown(whole)} as {_KINDS[type(before)]} and as {_KINDS[type(node)]}, "
                "expected one of them"
            )
        if before is None or not isinstance(node, dict):
            folder[name] = node

    def _counted(self, before: int) -> int:
        """Return one more. Raises ``TarError`` beyond the bound."""
        if before >= self._limit:
            raise TarError(f"found more than {self._limit} entries, which is no host")
        return before + 1

    def _linked(self, entry: Entry) -> bytes | str:
        """Return what a hard link is another name of; it has to come before."""
        found: Node | None = self.top
        for part in _parts(entry.target):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None or isinstance(found, dict):
            raise TarError(
                f"found {shown(entry.name)} as a hard link to {shown(entry.target)}, "
                "expected a file that came before"
            )
        return found


_KINDS: Final = {dict: "a directory", bytes: "a file", str: "a link"}


def shown(name: str) -> str:
    """Return a name as a message has it: escaped, and no longer than a line."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise TarError(f"found {shown(name)}, which leads out of it")
    if "\0" in name or len(parts) > _DEPTH_LIMIT or any(map(_is_too_long, parts)):
        raise TarError(f"found {shown(name)}, which is no path of a host")
    return parts


def _is_too_long(part: str) -> bool:
    return len(part.encode("utf-8", "surrogateescape")) > _NAME_LIMIT


def _target(entry: Entry) -> str:
    """Return where a link leads; where that is, is the reader's concern."""
    if len(entry.target.encode("utf-8", "surrogateescape")) >= _TARGET_LIMIT:
        raise TarError(f"found {shown(entry.name)}, a link to no path of a host")
    return entry.target
