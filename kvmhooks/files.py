"""A file that a person or an earlier run has left: read without waiting, and no more than a bound.

A FIFO in its place would be waited for, a device may act when it is opened, and a sparse file of
gigabytes be read to its end. A pipe that a shell has made (``<(virsh dumpxml web)``) is as good as
a file, if it comes to its end.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

PIPE_SECONDS = 30.0
"""The time that a person's document may take to come through a pipe."""

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
        message = f"found {self.kind}, expected a regular file"
        super().__init__(errno.EINVAL, message, os.fspath(path))


def read(
    path: str | os.PathLike[str],
    limit: int,
    *,
    owner: int | None = None,
    follows: bool = True,
    pipe_seconds: float = 0,
) -> bytes:
    """Return what a regular file holds: ``limit`` bytes at most, and one more if there are more.

    With an ``owner`` another user's file is refused. Without ``follows`` the last part of the path
    may be no link. A pipe that somebody writes to is read for ``pipe_seconds`` at most. Raises
    ``OSError`` with what is wrong.
    """
    takes_pipes = pipe_seconds > 0
    _check(path, Path(path).stat(follow_symlinks=follows), owner, takes_pipes=takes_pipes)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags if follows else flags | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        _check(path, status, owner, takes_pipes=takes_pipes)  # it may be another one by now
        if stat.S_ISFIFO(status.st_mode):
            parts = _parts_of_pipe(path, descriptor, time.monotonic() + pipe_seconds)
        else:
            parts = iter(lambda: os.read(descriptor, min(limit + 1, 1 << 20)), b"")
        data = bytearray()
        for part in parts:
            data += part
            if len(data) > limit:
                break
    finally:
        os.close(descriptor)
    return bytes(data[: limit + 1])


def _parts_of_pipe(path: str | os.PathLike[str], descriptor: int, until: float) -> Iterator[bytes]:
    """Give what comes through a pipe until its end.

    Raises ``TimeoutError`` when the end has not come by ``until`` (monotonic seconds), and
    ``IrregularError`` for a FIFO that nobody writes to.
    """
    is_empty = True
    while True:
        try:
            part = os.read(descriptor, 1 << 16)
        except BlockingIOError:  # its writer has not written yet (pipe(7))
            if select.select([descriptor], (), (), max(0, until - time.monotonic()))[0]:
                continue
            message = "found a pipe that does not come to its end, expected a document"
            raise TimeoutError(errno.ETIMEDOUT, message, os.fspath(path)) from None
        if not part and is_empty:
            raise IrregularError(path, stat.S_IFIFO)
        if not part:
            return
        is_empty = False
        yield part


def _check(
    path: str | os.PathLike[str],
    status: os.stat_result,
    owner: int | None,
    *,
    takes_pipes: bool,
) -> None:
    is_taken = stat.S_ISREG(status.st_mode) or (takes_pipes and stat.S_ISFIFO(status.st_mode))
    if not is_taken:
        raise IrregularError(path, status.st_mode)
    if owner not in {None, status.st_uid}:
        message = f"found a file of user {status.st_uid}, expected one of user {owner}"
        raise PermissionError(errno.EPERM, message, os.fspath(path))
