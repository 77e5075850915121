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
from typing import TYPE_CHECKING, Final, Protocol

from kvmhooks.errors import HostError
from kvmhooks.host.directory import ATTRIBUTE_LIMIT, PADDING, Directory
from kvmhooks.host.flaws import Flaws

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.values import CpuSet

FLAWS: Final = "kvmhooks-flaws"
"""The file of a captured tree that says which files were there and could not be read."""

_LINKS_LIMIT: Final = 40
"""As in the kernel (``MAXSYMLINKS``, include/linux/namei.h): beyond that it is a loop."""

_DEBUGFS: Final = "sys/kernel/debug/"
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO})


class Recorder(Protocol):
    """What sees everything that is read, and may change it before the reader does."""

    def saw_directory(self, path: str) -> None:
        """Note a directory that is there."""

    def saw_text(self, path: str, text: str) -> str:
        """Note what a file holds; the reader gets what is returned."""

    def saw_link(self, path: str, target: str) -> str:
        """Note where a link leads; the reader gets what is returned."""

    def saw_flaw(self, path: str, what: str) -> None:
        """Note what is wrong with something that is there and could not be read."""

    def public(self, name: str) -> str:
        """Give a name as the model shall have it."""


class Tree:
    """A host's files below one root.

    Raises ``HostError`` when the root is no directory.
    """

    def __init__(
        self, root: str | os.PathLike[str] = "/", recorder: Recorder | None = None
    ) -> None:
        self.root = os.path.realpath(root)
        self.is_live = self.root == "/"
        self.flaws = Flaws()
        self.recorder = recorder
        # Live links were made by the kernel; those of a captured tree are followed by resolve().
        self._nofollow = 0 if self.is_live else os.O_NOFOLLOW
        self.file_flags = os.O_RDONLY | os.O_NONBLOCK | self._nofollow
        self._targets: dict[str, str | None] = {}
        try:
            names = os.listdir(self.root)
        except OSError as error:
            raise HostError(f"{os.fspath(root)}: cannot be read: {error.strerror}") from error
        if not {"sys", "proc"} & set(names):
            raise HostError(f"{os.fspath(root)}: holds neither sys nor proc, so it is no host")
        if FLAWS in names and not self.is_live:
            self._read_flaws()

    def _read_flaws(self) -> None:
        """Say again what was wrong with files that could not be captured."""
        for line in self.lines(FLAWS, limit=1 << 20):
            path, tab, what = line.partition("\t")
            if tab:
                self.unread(path, what)

    def directory(self, path: str) -> Directory | None:
        """Open a directory given by its path below the root; None when there is none."""
        at = path if self.is_live else self.resolve(path)
        if at is None:
            return None
        flags = os.O_RDONLY | os.O_DIRECTORY | self._nofollow
        try:
            fd = os.open(f"{self.root}/{at}", flags)
        except OSError as error:
            self.refuse(path, error)
            return None
        return self.opened(path, fd)

    def opened(self, path: str, fd: int) -> Directory:
        """Make a directory of its open file."""
        if self.recorder is not None:
            self.recorder.saw_directory(path)
        return Directory(self, path, fd)

    def resolve(self, path: str) -> str | None:
        """Follow the links of a path as if the root were ``/``; None when it leads nowhere."""
        done = ""
        todo = path.split("/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                done = done.rpartition("/")[0]
            if name in {"", ".", ".."}:
                continue
            at = f"{done}/{name}" if done else name
            target = self._link_target(at)
            if target is None:
                done = at
                continue
            links += 1
            if links > _LINKS_LIMIT:
                self.unread(path, "the links go round in a circle")
                return None
            if target.startswith("/"):
                done = ""
            todo += target.split("/")[::-1]
        return done

    def _link_target(self, at: str) -> str | None:
        """Where a link leads; None for anything else. Thousands of paths begin with the same."""
        if at not in self._targets:
            try:
                self._targets[at] = os.readlink(f"{self.root}/{at}")
            except OSError:
                self._targets[at] = None
        return self._targets[at]

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

    def lines(self, path: str, limit: int) -> Iterator[str]:
        """Read one long file line by line, at most ``limit`` bytes of it."""
        folder, _, name = path.rpartition("/")
        directory = self.directory(folder)
        fd = None
        if directory is not None:
            with directory:
                fd = directory.open(name)
        if fd is None:
            return
        said = self._lines_of(fd, path, limit)
        if self.recorder is None:
            yield from said
        else:
            text = self.recorder.saw_text(path, "\n".join(said))
            yield from text.split("\n") if text else ()

    def has(self, path: str) -> bool:
        """Tell whether a directory is there."""
        directory = self.directory(path)
        if directory is None:
            return False
        with directory:
            return True

    def _lines_of(self, fd: int, path: str, limit: int) -> Iterator[str]:
        try:
            file = open(fd, errors="replace", newline="\n")  # noqa: SIM115 -- below
        except IsADirectoryError as error:
            os.close(fd)
            self.unread(path, f"cannot be read: {error.strerror}")
            return
        with file:
            try:
                for line in file:
                    limit -= len(line)
                    if limit < 0:
                        self.unread(path, "is too long: the rest is left out")
                        return
                    yield line.strip(PADDING)
            except OSError as error:
                self.unread(path, f"cannot be read: {error.strerror}")

    def open_another_way(self, path: str, error: OSError) -> int | None:
        """Open a file that could not be opened at once: by its link, or not at all."""
        if error.errno == errno.ELOOP and self._nofollow:
            return self._open_linked(path)
        self.refuse(path, error)
        return None

    def _open_linked(self, path: str) -> int | None:
        """Open what a link in a captured tree leads to, if that is in the tree."""
        at = self.resolve(path)
        if at is None:
            return None
        try:
            return os.open(f"{self.root}/{at}", self.file_flags)
        except OSError as error:
            self.refuse(path, error)
            return None

    def refuse(self, path: str, error: OSError) -> None:
        """Note a file that is there and cannot be used; one that is not there is no news.

        Nor is it that debugfs is shut to ordinary users, as the kernel mounts it.
        """
        is_shut = isinstance(error, PermissionError) and path.startswith(_DEBUGFS)
        if error.errno not in _GONE and not is_shut:
            self.unread(path, f"cannot be read: {error.strerror}")

    def unread(self, path: str, what: str) -> None:
        """Note why a file that is there was not read."""
        self.flaws.add(path, what)
        if self.recorder is not None:
            self.recorder.saw_flaw(path, what)

    def public(self, name: str) -> str:
        """Give a name that was found as the model shall have it."""
        return name if self.recorder is None else self.recorder.public(name)
