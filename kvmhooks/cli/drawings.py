"""Drawings to a file that a person names, or to standard output."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from kvmhooks.errors import HostError
from kvmhooks.output import document

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_drawing(drawn: str, file: Path) -> None:
    """Write a drawing to a new file, or in one step in the place of a regular one; - prints it.

    A link is never written through, since its owner could have root write anywhere. Raises
    ``HostError``.
    """
    if str(file) == "-":
        document(drawn)
        return
    try:
        directory = os.open(file.parent, _DIRECTORY)
        try:
            _replace(directory, file, drawn.encode(errors="surrogateescape"))
        finally:
            os.close(directory)
    except OSError as error:
        raise HostError(f"{file}: cannot be written: {error.strerror}") from error


def _replace(directory: int, file: Path, content: bytes) -> None:
    """Replace ``file``, which is in an open directory. Raises ``OSError`` and ``HostError``."""
    try:
        mode = os.stat(file.name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        found = "a link" if stat.S_ISLNK(mode) else "no regular file"
        raise HostError(f"{file}: cannot be written: found {found}, expected a file or nothing")
    new = f".{os.urandom(8).hex()}.new"
    descriptor = os.open(new, _NEW_FILE, 0o666, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
        os.rename(new, file.name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(new, dir_fd=directory)
        raise
