"""The files of a host: bounded, opened once, and never outside the root.

A tree is the live ``/`` or a directory that holds a captured ``/sys``, ``/proc`` and ``/dev``. Of
a captured tree nothing is trusted, nor that it stays as it is while it is read: its links are
followed here, within the tree only, and what they lead to is opened step by step, each without
following a link; what is no regular file is not opened. Nothing here raises for what a tree holds:
a file that is missing is None, one that cannot be used is None and a warning.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from kvmhooks.errors import HostError
from kvmhooks.host.files.directory import (
    ATTRIBUTE_LIMIT,
    PADDING,
    PLAIN_DIRECTORY,
    Directory,
)
from kvmhooks.host.files.flaws import Flaws
from kvmhooks.host.files.formats import split_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvmhooks.values import CpuSet

FLAWS: Final = "kvmhooks-flaws"
"""The file of a captured tree that says which files were there and could not be read."""

_LINKS_LIMIT: Final = 40
"""The kernel's limit (``MAXSYMLINKS``, include/linux/namei.h): beyond that it is a loop."""

_STEPS_LIMIT: Final = 256
"""Names on the way of one path, links included: the longest of a large server has some 40."""
_LINE_LIMIT: Final = 1 << 20
"""Bytes: a line of ``/proc/interrupts`` of 8,192 CPUs has 90 KB."""

NOWHERE: Final = ""
"""The target of a link that leads to nothing; a link that says nothing leads there, too."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEBUGFS: Final = "sys/kernel/debug/"
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO})


class Recorder(Protocol):
    """A witness that sees everything that is read, and may change it before the reader does."""

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
        # A link that leads to / does not make this machine of a captured tree.
        self.is_live = os.path.abspath(root).strip("/") == ""
        self.flaws = Flaws()
        self.recorder = recorder
        self._targets: dict[str, str | None] = {}
        names = self._open_root(root)
        if not {"sys", "proc"} & set(names):
            raise HostError(f"{os.fspath(root)}: holds neither sys nor proc, so it is no host")
        if FLAWS in names and not self.is_live:
            self._read_flaws()

    def _open_root(self, root: str | os.PathLike[str]) -> list[str]:
        """Open the root, for as long as the tree is in use, and return the names in it."""
        try:
            self._root = os.open(root, _DIRECTORY)
            weakref.finalize(self, os.close, self._root)
            return os.listdir(self._root)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise HostError(f"{os.fspath(root)}: cannot be read: {why}") from error

    def _read_flaws(self) -> None:
        """Say again what was wrong with files that could not be captured."""
        for line in self.lines(FLAWS, limit=1 << 20):
            path, tab, what = line.partition("\t")
            if tab:
                self.unread(path, what)

    def directory(self, path: str) -> Directory | None:
        """Open a directory given by its path below the root; None when there is none."""
        if "\0" in path:
            return None
        at = path if self.is_live else self.resolve(path)
        if at is None:
            return None
        try:
            fd = self._open_directory(at)
        except OSError as error:
            self.refuse(path, error)
            return None
        return self.opened(Directory(self, path, fd))

    def opened(self, directory: Directory) -> Directory:
        """Return a directory that was just opened, when the recorder has seen it."""
        if self.recorder is not None:
            self.recorder.saw_directory(directory.path)
        return directory

    def _open_directory(self, at: str) -> int:
        """Open a directory; in a captured tree one step at a time, of which none may be a link."""
        if self.is_live:
            return os.open(at or ".", _DIRECTORY, dir_fd=self._root)
        *above, last = at.split("/")
        way = self._root
        try:
            for name in above:
                step = os.open(name, _STEP, dir_fd=way)
                self._leave(way)
                way = step
            return os.open(last or ".", PLAIN_DIRECTORY, dir_fd=way)
        finally:
            self._leave(way)

    def _leave(self, way: int) -> None:
        if way != self._root:
            os.close(way)

    def resolve(self, path: str) -> str | None:
        """Follow the links of a path as if the root were ``/``; None when it leads nowhere."""
        done = ""
        todo = path.split("/")[::-1]
        links = steps = 0
        while todo:
            name = todo.pop()
            if name == "..":
                done = done.rpartition("/")[0]
            if name in {"", ".", ".."}:
                continue
            at = f"{done}/{name}" if done else name
            target = self._link_target(at)
            steps += 1
            if target is None:
                done = at
                continue
            links += 1
            if target == NOWHERE:
                return None
            if target.startswith("/"):
                done = ""
            todo += target.split("/")[::-1]
            if links > _LINKS_LIMIT or steps + len(todo) > _STEPS_LIMIT:
                self.unread(path, "the links go round in a circle")
                return None
        return done

    def _link_target(self, at: str) -> str | None:
        """Return the target of a link; None for anything else. Thousands of paths begin with the
        same.
        """
        if at not in self._targets:
            self._targets[at] = self._read_link(at)
        return self._targets[at]

    def _read_link(self, at: str) -> str | None:
        """Return where a link leads, None for anything else, and ``NOWHERE`` for nothing at all."""
        try:
            return os.readlink(at, dir_fd=self._root)
        except OSError as error:
            return NOWHERE if error.errno in _ABSENT else None

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
        """Read one long file line by line, at most ``limit`` bytes of it.

        Only a newline ends a line: other users' names may hold anything else.
        """
        folder, _, name = path.rpartition("/")
        directory = self.directory(folder)
        if directory is None:
            return
        with directory:
            lines = self._lines_of(directory.chunks(name), path, limit)
            if self.recorder is None:
                yield from lines
            else:
                yield from split_lines(self.recorder.saw_text(path, "\n".join(lines)))

    def has(self, path: str) -> bool:
        """Tell whether a directory is there."""
        directory = self.directory(path)
        if directory is None:
            return False
        with directory:
            return True

    def _lines_of(self, chunks: Iterable[bytes], path: str, limit: int) -> Iterator[str]:
        rest = b""
        for chunk in chunks:
            is_over = len(chunk) > limit
            *whole, rest = (rest + chunk[:limit]).split(b"\n")
            limit -= len(chunk)
            for line in whole:
                yield line.decode("utf-8", "replace").strip(PADDING)
            if is_over or len(rest) > _LINE_LIMIT:
                self.unread(path, "is too long: the rest is left out")
                return
        if rest:
            yield rest.decode("utf-8", "replace").strip(PADDING)

    def open_file(self, path: str, name: str, directory: int) -> int | None:
        """Open a file by its name in an open directory; None, with a warning where it cannot be.

        ``path`` is where it is below the root. In a captured tree what is no regular file is left
        shut: to open a device is to use it (a watchdog starts).
        """
        try:
            if self.is_live:
                return os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            if not stat.S_ISLNK(_mode_of(name, directory)):
                return self._open_plain(path, name, directory)
            folder, _, last = (self.resolve(path) or NOWHERE).rpartition("/")
            way = self._open_directory(folder)
            try:
                return self._open_plain(path, last, way)
            finally:
                os.close(way)
        except OSError as error:
            self.refuse(path, error)
            return None

    def _open_plain(self, path: str, name: str, directory: int) -> int | None:
        if stat.S_IFMT(_mode_of(name, directory)) not in {stat.S_IFREG, stat.S_IFDIR}:
            self.unread(path, "is no regular file")
            return None
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=directory)

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


def _mode_of(name: str, directory: int) -> int:
    """Return the mode of what has a name in an open directory, of a link its own."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
