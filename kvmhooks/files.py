"""A file that a person or an earlier run has left: read without waiting, and no more than a bound.

A FIFO in its place would be waited for, a device may act when it is opened, and a sparse file of
gigabytes be read to its end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a link",
}


class IrregularError(OSError):
    """There is something of this name, and it is no regular file."""

    def __init__(self, path: str | os.PathLike[str], mode: int) -> None:
        self.kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        said = f"found {self.kind}, expected a regular file"
        super().__init__(errno.EINVAL, said, os.fspath(path))


def read(
    path: str | os.PathLike[str], limit: int, *, owner: int | None = None, follows: bool = True
) -> bytes:
    """Return what a regular file holds: ``limit`` bytes at most, and one more if there are more.

    With an ``owner`` another user's file is refused. Without ``follows`` the last part of the path
    may be no link. Raises ``OSError`` with what is wrong.
    """
    _check(path, Path(path).stat(follow_symlinks=follows), owner)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags if follows else flags | os.O_NOFOLLOW)
    try:
        _check(path, os.fstat(descriptor), owner)  # it may be another one by now
        parts = [b""]
        while limit >= 0 and (part := os.read(descriptor, min(limit + 1, 1 << 20))):
            parts.append(part)
            limit -= len(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _check(path: str | os.PathLike[str], status: os.stat_result, owner: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IrregularError(path, status.st_mode)
    if owner not in {None, status.st_uid}:
        said = f"found a file of user {status.st_uid}, expected one of user {owner}"
        raise PermissionError(errno.EPERM, said, os.fspath(path))
