"""The files of a host: bounded, opened once, and never outside the root.

A tree is the live ``/`` or a directory that holds a captured ``/sys``, ``/proc`` and ``/dev``. Of
a captured tree nothing is trusted: symbolic links are followed within the tree only, so that an
absolute link does not lead to the files of this machine, and what is not a regular file is not
waited for. Nothing here raises for what a tree holds: a file that is missing is None, one that
cannot be used is None and a warning.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Final, Self, TypeVar

from kvmhooks.errors import HostError, ValueFormatError
from kvmhooks.host.flaws import Flaws
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

T = TypeVar("T")

_PAGE: Final = 4096
"""A sysfs attribute is at most a page, and the kernel hands out longer ones (the CPU lists) page by
page (fs/kernfs/file.c): a shorter read is the end."""

ATTRIBUTE_LIMIT: Final = 64 * 1024
"""More than any attribute: a list of 8,192 CPUs of which none are neighbours takes 40 KiB."""

_LINKS_LIMIT: Final = 40
"""As in the kernel (``MAXSYMLINKS``, include/linux/namei.h): beyond that it is a loop."""

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO})
_MASK: Final = re.compile(r"[0-9a-f]{1,8}(?:,[0-9a-f]{8})*", re.ASCII)
_PADDING: Final = "\0 \t\r\n"


class Tree:
    """A host's files below one root.

    Raises ``HostError`` when the root is no directory.
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = os.path.realpath(root)
        self.is_live = self.root == "/"
        self.flaws = Flaws()
        # Live links were made by the kernel; those of a captured tree are followed by resolve().
        self._nofollow = 0 if self.is_live else os.O_NOFOLLOW
        try:
            names = os.listdir(self.root)
        except OSError as error:
            raise HostError(f"{os.fspath(root)}: cannot be read: {error.strerror}") from error
        if not {"sys", "proc"} & set(names):
            raise HostError(f"{os.fspath(root)}: holds neither sys nor proc, so it is no host")

    def directory(self, path: str) -> Directory | None:
        """Open a directory given by its path below the root; None when there is none."""
        at = path if self.is_live else self.resolve(path)
        if at is None:
            return None
        flags = os.O_RDONLY | os.O_DIRECTORY | self._nofollow
        try:
            return Directory(self, path, os.open(os.path.join(self.root, at), flags))
        except OSError as error:
            self.refuse(path, error)
            return None

    def resolve(self, path: str) -> str | None:
        """Follow the links of a path as if the root were ``/``; None when it leads nowhere."""
        done: list[str] = []
        todo = path.split("/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name in {"", "."}:
                continue
            if name == "..":
                del done[-1:]
                continue
            done.append(name)
            target = _link_target(os.path.join(self.root, *done))
            if target is None:
                continue
            links += 1
            if links > _LINKS_LIMIT:
                self.flaws.add(path, "the links go round in a circle")
                return None
            done = [] if target.startswith("/") else done[:-1]
            todo += target.split("/")[::-1]
        return "/".join(done)

    def text(self, path: str, limit: int = ATTRIBUTE_LIMIT) -> str | None:
        """Read one file to its end; None when it is not there or cannot be read."""
        folder, _, name = path.rpartition("/")
        directory = self.directory(folder)
        if directory is None:
            return None
        with directory:
            return directory.text(name, limit=limit, whole=True)

    def cpus(self, path: str) -> CpuSet | None:
        """Read one file that holds a list."""
        folder, _, name = path.rpartition("/")
        directory = self.directory(folder)
        if directory is None:
            return None
        with directory:
            return directory.cpus(name)

    def open_file(self, path: str, name: str, directory: int) -> int | None:
        """Open one file of an open directory; None, with a warning, when it cannot be."""
        flags = os.O_RDONLY | os.O_NONBLOCK | self._nofollow
        try:
            return os.open(name, flags, dir_fd=directory)
        except OSError as error:
            if error.errno == errno.ELOOP and self._nofollow:
                return self._open_linked(f"{path}/{name}")
            self.refuse(f"{path}/{name}", error)
            return None

    def _open_linked(self, path: str) -> int | None:
        """Open what a link in a captured tree leads to, if that is in the tree."""
        at = self.resolve(path)
        if at is None:
            return None
        try:
            return os.open(os.path.join(self.root, at), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            self.refuse(path, error)
            return None

    def refuse(self, path: str, error: OSError) -> None:
        """Note a file that is there and cannot be used; one that is not there is no news."""
        if error.errno not in _GONE:
            self.flaws.add(path, f"cannot be read: {error.strerror}")


class Directory:
    """One open directory of a tree; close it, or use it in a ``with`` statement."""

    __slots__ = ("_fd", "path", "tree")

    def __init__(self, tree: Tree, path: str, fd: int) -> None:
        self.tree = tree
        self.path = path
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def names(self) -> list[str]:
        """The names in it, in no order."""
        try:
            return os.listdir(self._fd)
        except OSError as error:
            self.tree.refuse(self.path, error)
            return []

    def child(self, name: str) -> Directory | None:
        """Open a directory in this one; None when there is none."""
        path = f"{self.path}/{name}"
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._fd)
        except OSError as error:
            # Linux answers ENOTDIR for a link when O_DIRECTORY and O_NOFOLLOW are both given.
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                return self.tree.directory(path)
            self.tree.refuse(path, error)
            return None
        return Directory(self.tree, path, fd)

    def text(self, name: str, *, limit: int = ATTRIBUTE_LIMIT, whole: bool = False) -> str | None:
        """Read one file, without the white space and NUL bytes around it.

        ``whole`` reads on after a short read, as files of ``/proc`` need. More than ``limit``
        bytes are refused with a warning rather than read.
        """
        fd = self.tree.open_file(self.path, name, self._fd)
        if fd is None:
            return None
        try:
            data = os.read(fd, _PAGE)
            if not data and not stat.S_ISREG(os.fstat(fd).st_mode):
                self.warn(name, "is no regular file")
                return None
            if whole or len(data) >= _PAGE:
                data = _read_on(fd, data, limit=limit, whole=whole)
        except OSError as error:
            self.warn(name, f"cannot be read: {error.strerror}")
            return None
        finally:
            os.close(fd)
        if len(data) > limit:
            self.warn(name, f"is longer than {limit} bytes, which is no such file")
            return None
        return data.decode("utf-8", "replace").strip(_PADDING)

    def integer(self, name: str) -> int | None:
        """Read a whole number, in decimal."""
        return self._parsed(name, _parse_integer, "a whole number")

    def cpus(self, name: str) -> CpuSet | None:
        """Read a list such as ``0-3,8``; an empty file is the empty set."""
        return self._parsed(name, _parse_cpus, 'a list such as "0-3,8"')

    def mask(self, name: str) -> CpuSet | None:
        """Read a hex mask such as ``00000000,0000000f``."""
        return self._parsed(name, _parse_mask, "a hex mask")

    def sharing(self, mask: str, listed: str) -> CpuSet | None:
        """Read a set that the kernel writes both as a mask and as a list.

        The mask is read, as hwloc does: where a tree was edited by hand, it is the lists that were
        forgotten. The list counts where there is no mask that can be read.
        """
        cpus = self.mask(mask)
        return cpus if cpus is not None else self.cpus(listed)

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


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
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


def _parse_integer(text: str) -> int:
    if len(text) > 20:
        raise ValueFormatError(text, "a whole number of 64 bits")
    if not text.lstrip("-").isdecimal() or not text.isascii():
        raise ValueFormatError(text, "a whole number")
    return int(text)


def _parse_cpus(text: str) -> CpuSet:
    # The kernel prints a mask it never allocated as "(null)": nohz_full when none were asked for.
    return CpuSet() if text == "(null)" else CpuSet.parse(text)


def _parse_mask(text: str) -> CpuSet:
    """Read a mask in the kernel's own form at once; any other goes to the careful parser."""
    if len(text) < ATTRIBUTE_LIMIT // 4 and _MASK.fullmatch(text):
        return CpuSet.from_mask(int(text.replace(",", ""), 16))
    return CpuSet.parse_mask(text)
