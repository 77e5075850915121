"""Files that the spec of a VM names: read, made, replaced and removed, by us or as another user.

``kvm_launch.prepare.paths`` decides by whom. As another user it is a program of its own, with
nothing but the standard library::

    python3 -I -S -c TEXT UID:GID:GROUP,GROUP VERB PATH WORD...

It becomes that user for good before it looks at a path, so that the kernel's own checks hold. Its
standard input has the bytes to write, its standard output those that it read; of a failure its
standard error has ``[errno, why, file]``. No call waits for a FIFO or a device, and no new file is
ever made through a link.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFBLK: "block device"}


class Way(NamedTuple):
    """The way to a file."""

    is_linkless: bool = False
    """The path is without links: one that is there by now is an error, not followed."""
    owner: tuple[int, int] | None = None
    """The owner of that which is made: a user and a group; None: whoever makes it."""


def look(paths: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return of each path what is there, its size in bytes, and what may be done with it.

    The kind is one of ``KINDS``, ``other``, ``nothing``, or ``denied`` in a folder that may not be
    searched; what may be done is as access(2) has it.
    """
    return [_look(path) for path in paths]


def read(path: str, start: int, limit: int, way: Way) -> bytes:
    """Return up to ``limit`` bytes of a regular file. Raises ``OSError`` for anything else."""
    with _folder_of(path, way) as (folder, name):
        flags = READ | (os.O_NOFOLLOW if way.is_linkless else 0)
        descriptor = os.open(name, flags, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "found no regular file, expected one")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                file.seek(start)
                return file.read(limit)
        finally:
            os.close(descriptor)


def create(path: str, way: Way) -> int:
    """Make an empty file and return its descriptor. Raises ``OSError`` where anything is already.

    It is made with the rights that QEMU gives to images (``qemu_create()``, block/file-posix.c).
    """
    with _folder_of(_led_to(path, way), way) as (folder, name):
        return os.open(name, NEW, 0o644, dir_fd=folder)


def make(path: str, data: bytes, way: Way) -> None:
    """Make a file of ``data`` for its owner's eyes only: whole or not at all, over nothing.

    Raises ``OSError``.
    """
    with _folder_of(path, way) as (folder, name), _written(folder, name, data, way) as new:
        os.link(new, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)


def replace(path: str, data: bytes, way: Way) -> None:
    """Put a file of ``data`` in the place of what is there, in one step. Raises ``OSError``."""
    with _folder_of(path, way) as (folder, name), _written(folder, name, data, way) as new:
        os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)


def make_folder(path: str, way: Way) -> None:
    """Make a folder that only its owner can look into. Raises ``OSError`` where anything is."""
    with _folder_of(path, way) as (folder, name):
        os.mkdir(name, 0o700, dir_fd=folder)
        if way.owner is None:
            return
        try:
            made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                os.fchown(made, *way.owner)
            finally:
                os.close(made)
        except OSError:
            os.rmdir(name, dir_fd=folder)
            raise


def remove(path: str, way: Way) -> None:
    """Remove what ``create`` has made, if it is there. Raises ``OSError``."""
    with _folder_of(_led_to(path, way), way) as (folder, name), suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


@contextmanager
def _folder_of(path: str, way: Way) -> Iterator[tuple[int, str]]:
    """Open the folder that a file is in, and give it with the file's name there.

    An ``OSError`` then names its file by the whole path.
    """
    above, name = os.path.split(path)
    folder = _opened_without_links(above) if way.is_linkless else os.open(above, FOLDER)
    try:
        yield folder, name
    except OSError as error:
        error.filename = os.path.join(above, error.filename2 or error.filename or name)
        raise
    finally:
        os.close(folder)


def _opened_without_links(path: str) -> int:
    """Open a folder, each part of its path below the one before."""
    folder = os.open("/", FOLDER)
    for part in filter(None, path.split("/")):
        try:
            below = os.open(part, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(folder)
        folder = below
    return folder


@contextmanager
def _written(folder: int, name: str, data: bytes, way: Way) -> Iterator[str]:
    """Write a new file beside ``name`` and give its name; it is gone when the context ends."""
    new = f".{name}.new"
    with suppress(FileNotFoundError):  # of one that was killed
        os.unlink(new, dir_fd=folder)
    descriptor = os.open(new, NEW, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if way.owner is not None:
                os.fchown(descriptor, *way.owner)
        yield new
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=folder)


def _led_to(path: str, way: Way) -> str:
    """Return where a link leads to that somebody has put where an image is to be."""
    return path if way.is_linkless else os.path.realpath(path)


def _look(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except PermissionError:
        return "denied", 0, 0
    except OSError:
        return "nothing", 0, 0
    access = sum(mode for mode in (os.R_OK, os.W_OK, os.X_OK) if os.access(path, mode))
    return KINDS.get(stat.S_IFMT(status.st_mode), "other"), status.st_size, access


def _create(path: str, _: bytes, _words: Sequence[str], way: Way) -> bytes:
    os.close(create(path, way))
    return b""


VERBS: Final[dict[str, Callable[[str, bytes, Sequence[str], Way], bytes | None]]] = {
    "look": lambda _, data, _words, _way: json.dumps(look(json.loads(data))).encode(),
    "read": lambda path, _, words, way: read(path, int(words[0]), int(words[1]), way),
    "create": _create,
    "make": lambda path, data, _, way: make(path, data, way),
    "replace": lambda path, data, _, way: replace(path, data, way),
    "make_folder": lambda path, _, _words, way: make_folder(path, way),
    "remove": lambda path, _, _words, way: remove(path, way),
}
"""The verbs that can be asked for: with a path, what is to be written, more words, and the way."""


def main(argv: Sequence[str]) -> int:
    """Become the user, do what is asked for as that user, and return the exit status."""
    ids, verb, path, *words = argv
    uid, gid, groups = ids.split(":")
    try:
        os.setgroups([int(group) for group in groups.split(",") if group])
        os.setresgid(int(gid), int(gid), int(gid))
        os.setresuid(int(uid), int(uid), int(uid))
        answer = VERBS[verb](path, sys.stdin.buffer.read(), words, Way())
    except OSError as error:
        print(json.dumps([error.errno, error.strerror, error.filename]), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(answer or b"")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
