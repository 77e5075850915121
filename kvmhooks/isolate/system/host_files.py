"""A host's files: read, written and looked for below its root.

With another root than ``/`` nothing outside of it is read or changed, wherever its links lead, and
no device is opened (``below``).
"""

from __future__ import annotations

import errno
import os
import stat

from kvmhooks.errors import IsolationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

MAX_READ: Final = 4 << 20
"""More than this is never read from a kernel's file (``/proc/interrupts`` of 8,192 CPUs)."""

MAX_CONFIGURED: Final = 65_536
"""No larger file of an administrator is read."""

_TO_HOLD: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TO_WRITE: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_AROUND: Final = " \t\n"


class HostFiles:
    """The files of a host below ``root``. Paths have no leading slash.

    Every method raises ``OSError`` with the kernel's own errno.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = os.path.join(root, "")  # noqa: PTH118 -- pathlib costs the hook 5 ms
        self._held: dict[str, tuple[int, int]] = {}
        """Files that are kept open to be written: the descriptor, and how long the text is."""
        self._written: dict[str, int] = {}
        """Those that were written, and will be read back."""

    @property
    def is_real(self) -> bool:
        """This is the machine itself, and no tree of files."""
        return self.root == "/"

    def at(self, path: str, *, is_followed: bool = True) -> str:
        """Return the path of the machine that a path of the host is."""
        if self.root == "/":
            return "/" + path
        from kvmhooks.isolate.system import below  # noqa: PLC0415 -- the hook needs none of it

        return below.resolve(self.root, path, is_followed=is_followed)

    def _plain(self, path: str, *, is_followed: bool = True) -> str:
        """Return the same of what is to be opened; no device of a tree is."""
        if self.root == "/":
            return "/" + path
        from kvmhooks.isolate.system import below  # noqa: PLC0415 -- as in at

        return below.plain(self.root, path, is_followed=is_followed)

    def read(self, path: str) -> str:
        """Return the text of a file, without the blanks and line feeds around it."""
        return self._raw(path).strip(_AROUND)

    def lines(self, path: str) -> list[str]:
        """Return the lines of a file as they are.

        Of the kernel's files a line feed alone ends a line: it lets a name hold whatever else
        ``str.splitlines()`` takes for an end, and ends or begins one with a blank.
        """
        text = self._raw(path)
        return text.removesuffix("\n").split("\n") if text else []

    def _raw(self, path: str) -> str:
        descriptor = os.open(self._plain(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = os.read(descriptor, 65_536)
            if len(data) >= 4_096:  # a sysfs file is at most a page; procfs goes on
                parts = [data]
                while parts[-1] and sum(map(len, parts)) < MAX_READ:
                    parts.append(os.read(descriptor, 65_536))
                data = b"".join(parts)
        finally:
            os.close(descriptor)
        return data.decode("utf-8", "surrogateescape")

    def administrators(self, path: str) -> str | None:
        """Return the text of a file that the administrator alone can change, or None without it.

        Raises ``IsolationError`` for a link and whatever else is no file, and where another user
        than root or ourselves owns the file or its directory, or may write there.
        """
        above, _, name = path.rpartition("/")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            directory = os.open(self.at(above, is_followed=False), flags | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IsolationError(f"/{above}: {error.strerror}: expected a directory") from error
        try:
            if not self.is_real:
                self._plain(path, is_followed=False)
            descriptor = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            os.close(directory)
            return None
        except OSError as error:
            os.close(directory)
            raise IsolationError(f"/{path}: {error.strerror}: expected a file, no link") from error
        try:
            _check_administrators(above, os.fstat(directory))
            status = os.fstat(descriptor)
            _check_administrators(path, status)
            if not stat.S_ISREG(status.st_mode):
                raise IsolationError(f"/{path}: found no regular file, expected one")
            data = os.read(descriptor, MAX_CONFIGURED)
        finally:
            os.close(descriptor)
            os.close(directory)
        if len(data) >= MAX_CONFIGURED:
            raise IsolationError(f"/{path}: found {len(data)} bytes or more, expected fewer")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise IsolationError(f"/{path}: {error.reason}, expected UTF-8") from error

    def hold(self, path: str) -> str:
        """Read a short file that may have to be written, and keep it open until ``let_go``.

        To write it and to read it back is then one system call each, where a host has thousands of
        such files. ``pread`` leaves the position where ``write`` needs it: sysctls ignore what is
        written anywhere but at the start (``sysctl_writes_strict``, admin-guide/sysctl/kernel.rst).
        """
        try:
            descriptor = os.open(self._plain(path, is_followed=False), _TO_HOLD)
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self.let_go()
            elif error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise
            return self.read(path)
        try:
            data = os.pread(descriptor, 4_096, 0)
        except OSError:  # xps_cpus of a card with one queue: ENOENT
            os.close(descriptor)
            raise
        if path in self._held or len(data) >= 4_096:
            os.close(descriptor)
            return self.read(path)
        self._held[path] = descriptor, len(data)
        return data.decode("utf-8", "surrogateescape").strip(_AROUND)

    def let_go(self) -> None:
        """Close the files that ``hold`` has kept open."""
        for descriptor, _ in self._held.values():
            os.close(descriptor)
        for descriptor in self._written.values():
            os.close(descriptor)
        self._held.clear()
        self._written.clear()

    def read_back(self, path: str) -> str:
        """Return a file's text after a write; reading from the start asks the kernel anew.

        ``seq_read_iter()``, fs/seq_file.c, which procfs and sysfs are made with.
        """
        descriptor = self._written.pop(path, -1)
        if descriptor < 0:
            return self.read(path)
        try:
            return os.pread(descriptor, 4_096, 0).decode("utf-8", "surrogateescape").strip(_AROUND)
        finally:
            os.close(descriptor)

    def write(self, path: str, text: str) -> None:
        """Write a whole text with one system call, as sysfs needs it.

        Raises ``OSError``; a short write is ``ENOSPC``'s kin and raises, too.
        """
        data = (text + "\n").encode()
        if path in self._held:
            descriptor, before = self._held.pop(path)
            self._written[path] = descriptor  # its position is at the end: it is not written again
        else:
            descriptor = os.open(self._plain(path, is_followed=False), _TO_WRITE)
            before = 0 if self.is_real else os.fstat(descriptor).st_size
        if self.root != "/":  # a plain file would keep its tail; still one system call
            data = data.ljust(before, b"\n")
        try:
            written = os.write(descriptor, data)
        finally:
            if self._written.get(path) != descriptor:
                os.close(descriptor)
        if written != len(data):
            raise OSError(errno.EIO, f"short write: {written} of {len(data)} bytes", path)

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted; none when there is no such directory."""
        try:
            return sorted(os.listdir(self.at(path)))  # noqa: PTH208 -- as in __init__
        except (FileNotFoundError, NotADirectoryError):
            return []

    def directories(self, path: str) -> list[str]:
        """Return the directories directly below one, sorted; links are none."""
        try:
            with os.scandir(self.at(path)) as entries:
                return sorted(
                    entry.name for entry in entries if entry.is_dir(follow_symlinks=False)
                )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def inodes(self, path: str) -> dict[str, int]:
        """Return the inode of each transaction of a directory, by name."""
        try:
            with os.scandir(self.at(path)) as entries:
                return {entry.name: entry.inode() for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def crowded(self, path: str, names: Iterable[str]) -> set[str]:
        """Return those of these directories known to hold others, from the links to them alone.

        They hold the same files, and procfs counts these as well: the least is that of none.
        """
        links: dict[str, int] = {}
        for name in names:
            try:
                links[name] = os.stat(self.at(f"{path}/{name}")).st_nlink  # noqa: PTH116 -- as above
            except OSError:  # it has gone, or never was
                continue
        least = min(links.values(), default=0)
        return {name for name, count in links.items() if count > least}

    def has(self, path: str) -> bool:
        """Return whether there is something of this name."""
        try:
            os.stat(self.at(path))  # noqa: PTH116 -- as in __init__
        except OSError:
            return False
        return True

    def owner(self, path: str) -> int:
        """Return the user that a file is of, or a process by its directory."""
        return os.stat(self.at(path)).st_uid  # noqa: PTH116 -- as in __init__

    def make_directory(self, path: str) -> None:
        """Make a directory, or a control group, if it is not there; the one above it must be."""
        try:
            os.mkdir(self.at(path, is_followed=False), 0o755)  # noqa: PTH102 -- as in __init__
        except FileExistsError:
            return

    def unlink(self, path: str) -> None:
        """Remove a file, or a link itself."""
        os.unlink(self.at(path, is_followed=False))  # noqa: PTH108 -- as in __init__

    def remove_empty(self, path: str) -> None:
        """Remove a directory if there is nothing in it."""
        try:
            os.rmdir(self.at(path, is_followed=False))  # noqa: PTH106 -- as in __init__
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise

    def replace(self, path: str, text: str) -> None:
        """Make a file of a tree, or write it anew; nothing on a machine is made so."""
        with open(self._plain(path), "w", encoding="utf-8") as file:  # noqa: PTH123 -- as in __init__
            file.write(text)

    def is_socket(self, path: str) -> bool:
        """Return whether a file is a socket."""
        try:
            return stat.S_ISSOCK(os.lstat(self.at(path, is_followed=False)).st_mode)
        except OSError:
            return False

    def link(self, path: str) -> str:
        """Return the text of a link; empty where there is none."""
        try:
            return os.readlink(self.at(path, is_followed=False))  # noqa: PTH115 -- as in __init__
        except OSError:
            return ""


def _check_administrators(path: str, status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o022:
        raise IsolationError(
            f"/{path}: found owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}, "
            f"expected owner {os.geteuid()}, and that nobody else may write it"
        )
