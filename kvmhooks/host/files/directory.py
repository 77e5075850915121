"""One directory of a host's files, and what is read from the files in it.

Nothing here raises for what a file holds: one that is missing is None, one that cannot be used is
None and a warning.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Final, Self, TypeVar

from kvmhooks.host.files.formats import parse_cpus, parse_integer, parse_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from kvmhooks.host.files.tree import Tree
    from kvmhooks.values import CpuSet

T = TypeVar("T")

_PAGE: Final = 4096
"""A sysfs attribute is at most a page, and the kernel hands out longer ones (the CPU lists) page by
page (fs/kernfs/file.c): a shorter read is the end."""

ATTRIBUTE_LIMIT: Final = 64 * 1024
"""More than any attribute: a list of 8,192 CPUs of which none are neighbours takes 40 KiB."""

PADDING: Final = "\0 \t\r\n"
PLAIN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK: Final = 1 << 16


class Directory:
    """One open directory of a tree; close it, or use it in a ``with`` statement."""

    __slots__ = ("_below", "_fd", "path", "tree")

    def __init__(self, tree: Tree, path: str, fd: int, below: str = "") -> None:
        """Take an open file; or one of a directory above, with the rest of the way ``below`` it."""
        self.tree = tree
        self.path = path
        self._fd = fd
        self._below = below

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        if not self._below:
            os.close(self._fd)

    def names(self, pattern: re.Pattern[str]) -> list[str]:
        """Return the names in it that match as a whole, sorted.

        A name that could not be shown is none of the kernel's, and is left out with a warning.
        """
        try:
            found = sorted(filter(pattern.fullmatch, self._listed()))
        except OSError as error:
            self.tree.refuse(self.path, error)
            return []
        for name in found:
            if not name.isprintable():
                self.tree.unread(self.path, f"holds {name!r}, which is no name of the kernel's")
        found = list(filter(str.isprintable, found))
        if self.tree.recorder is not None:
            for name in found:
                self.tree.recorder.saw_directory(f"{self.path}/{name}")
        return found

    def _listed(self) -> list[str]:
        if not self._below:
            return os.listdir(self._fd)
        fd = os.open(self._below, PLAIN_DIRECTORY, dir_fd=self._fd)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def folders(self, pattern: re.Pattern[str]) -> Iterator[Directory]:
        """Give each directory in it whose name matches, sorted by name.

        On the live host they are not opened one by one, which would cost as much as reading two
        files in each: a directory that is no link can be gone through on the way to a file. In a
        captured tree it might be a link by then.
        """
        assert not self._below, "one that is only gone through has none of its own"
        if not self.tree.is_live:
            yield from self._children(pattern)
            return
        try:
            with os.scandir(self._fd) as entries:
                plain = {
                    entry.name: entry.is_dir(follow_symlinks=False)
                    for entry in entries
                    if pattern.fullmatch(entry.name)
                }
        except OSError as error:
            self.tree.refuse(self.path, error)
            return
        for name in sorted(plain):
            directory = self._through(name) if plain[name] else self.child(name)
            if directory is not None:
                with directory:
                    yield directory

    def _children(self, pattern: re.Pattern[str]) -> Iterator[Directory]:
        for name in self.names(pattern):
            directory = self.child(name)
            if directory is not None:
                with directory:
                    yield directory

    def _through(self, name: str) -> Directory:
        path = f"{self.path}/{name}"
        if self.tree.recorder is not None:
            self.tree.recorder.saw_directory(path)
        return Directory(self.tree, path, self._fd, f"{name}/")

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.rpartition("/")[2]

    def link(self, name: str) -> str | None:
        """Return the target of a link, as it says; None when there is no such link."""
        target = self._target(name)
        if target is None:
            return None
        if not target.isprintable():
            self.warn(name, f"leads to {target[:40]!r}, which is no name of the kernel's")
            return None
        if self.tree.recorder is not None:
            target = self.tree.recorder.saw_link(f"{self.path}/{name}", target)
        return target

    def _target(self, name: str) -> str | None:
        try:
            return os.readlink(self._below + name, dir_fd=self._fd)
        except (OSError, ValueError):  # the latter for a NUL in the name
            return None

    def link_name(self, name: str) -> str | None:
        """Return the last part of where a link leads."""
        target = self.link(name)
        return None if target is None else target.rstrip("/").rpartition("/")[2]

    def child(self, name: str) -> Directory | None:
        """Open a directory in this one; None when there is none."""
        path = f"{self.path}/{name}"
        try:
            fd = os.open(self._below + name, PLAIN_DIRECTORY, dir_fd=self._fd)
        except OSError as error:
            # Linux answers ENOTDIR for a link when O_DIRECTORY and O_NOFOLLOW are both given.
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                return self.tree.directory(path)
            self.tree.refuse(path, error)
            return None
        return self.tree.opened(Directory(self.tree, path, fd))

    def text(self, name: str, *, limit: int = ATTRIBUTE_LIMIT, whole: bool = False) -> str | None:
        """Read one file, without the white space and NUL bytes around it.

        ``whole`` reads on after a short read, as files of ``/proc`` need. More than ``limit``
        bytes are refused with a warning rather than read.
        """
        data = self._content(name, limit=limit, whole=whole)
        if data is None:
            return None
        if len(data) > limit:
            what = f"is longer than {limit} bytes, which is no such file"
            self.tree.unread(f"{self.path}/{name}", what)
            return None
        text = data.decode("utf-8", "replace").strip(PADDING)
        if self.tree.recorder is not None:
            text = self.tree.recorder.saw_text(f"{self.path}/{name}", text)
        return text

    def _content(self, name: str, *, limit: int, whole: bool) -> bytes | None:
        """Return what is in a file, or of a longer one more than ``limit`` bytes."""
        path = f"{self.path}/{name}"
        fd = self.tree.open_file(path, self._below + name, self._fd)
        if fd is None:
            return None
        try:
            data = os.read(fd, _PAGE)
            if not data and not stat.S_ISREG(os.fstat(fd).st_mode):
                self.tree.unread(path, "is no regular file")
                return None
            if whole or len(data) >= _PAGE:
                data = _read_on(fd, data, limit=limit, whole=whole)
        except OSError as error:
            self.tree.unread(path, f"cannot be read: {error.strerror}")
            return None
        finally:
            os.close(fd)
        return data

    def chunks(self, name: str) -> Iterator[bytes]:
        """Give the bytes of a long file, some at a time."""
        path = f"{self.path}/{name}"
        fd = self.tree.open_file(path, self._below + name, self._fd)
        if fd is None:
            return
        try:
            while chunk := os.read(fd, _CHUNK):
                yield chunk
        except OSError as error:
            self.tree.unread(path, f"cannot be read: {error.strerror}")
        finally:
            os.close(fd)

    def integer(self, name: str) -> int | None:
        """Read a whole number, in decimal."""
        return self._parsed(name, parse_integer, "a whole number")

    def cpus(self, name: str) -> CpuSet | None:
        """Read a list such as ``0-3,8``; an empty file is the empty set."""
        return self._parsed(name, parse_cpus, 'a list such as "0-3,8"')

    def mask(self, name: str) -> CpuSet | None:
        """Read a hex mask such as ``00000000,0000000f``."""
        return self._parsed(name, parse_mask, "a hex mask")

    def sharing(self, mask: str, listed: str) -> CpuSet | None:
        """Read a set that the kernel writes both as a mask and as a list.

        The mask is read, as hwloc does: where a tree was edited by hand, it is the lists that were
        forgotten. The list counts where there is no mask that can be read.
        """
        cpus = self.mask(mask)
        return cpus if cpus is not None else self.cpus(listed)

    def warn_missing(self, name: str) -> None:
        """Note that a file is not there which every kernel has; one that is there was noted."""
        try:
            self._look_for(name)
        except FileNotFoundError:
            self.warn(name, "is missing")
        except OSError as error:
            self.tree.refuse(f"{self.path}/{name}", error)

    def _look_for(self, name: str) -> None:
        """Raise ``FileNotFoundError`` where nothing has this name, ``OSError`` as os.stat does."""
        os.stat(self._below + name, dir_fd=self._fd, follow_symlinks=False)

    def warn(self, name: str, what: str) -> None:
        """Note what is wrong with a file in it."""
        self.tree.flaws.add(f"{self.path}/{name}", what)

    def _parsed(self, name: str, parse: Callable[[str], T], expected: str) -> T | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError:
            found = repr(text[:40]) if text else "nothing"
            self.warn(name, f"found {found}, expected {expected}")
            return None


def _read_on(fd: int, data: bytes, *, limit: int, whole: bool) -> bytes:
    """Read to the end, or to the first chunk above ``limit``."""
    chunks = [data]
    size = len(data)
    while size <= limit:
        chunk = os.read(fd, max(_PAGE, min(limit, 1 << 20)) if whole else _PAGE)
        chunks.append(chunk)
        size += len(chunk)
        if not chunk or (len(chunk) < _PAGE and not whole):
            break
    return b"".join(chunks)
