"""The directory under ``/run`` that holds what is on record: root's own, and no link followed.

``/run`` is empty after a boot (file-hierarchy(7)), so that no file here is older than the kernel
that it is about; the boot's id is kept all the same, for containers and odd set-ups.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from kvmhooks.errors import IsolationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Final

    from kvmhooks.isolate.system.system import System

PATH: Final = ("run", "kvmhooks")
"""The directory, one step at a time."""

STATE: Final = "state.json"
RECORD: Final = "lock"
_NEW: Final = ".new"
_RELEASED: Final = "released."
"""The beginning of the name of a note that a VM has ended; its claim's key follows."""

_WAITER: Final = "waiter"
"""The process that waits for what is owed: its pid and when it started."""

_POLL: Final = 0.005

MAX_BYTES: Final = 32 << 20
"""No larger record is read: 64,000 pinned tasks and 10,000 interrupts take 8 MiB."""


_MOST: Final = 255
"""Bytes of a file's name (``NAME_MAX``, limits.h)."""

_PLAIN: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Neither follow a link nor wait for whoever is at the other end of a FIFO."""


class LockedError(IsolationError):
    """Another hook holds a lock."""


class Store:
    """The directory below ``root``; made when something is first saved."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._directory: int | None = None

    def load(self) -> str | None:
        """Return the state that was last saved, or None. Raises ``IsolationError``."""
        return self._read(STATE)

    def save(self, text: str) -> None:
        """Replace the state in one step: a reader sees the old one or the new one.

        Raises ``IsolationError``; the last record then stands.
        """
        self._replace(STATE, text)

    def clear(self) -> None:
        """Forget the state: nothing is held any more. Raises ``IsolationError``."""
        self._unlink(STATE)

    def note_release(self, key: str) -> None:
        """Note that a VM has ended: its claim is let go even if this call fails.

        An empty file takes no room on a tmpfs but an inode. Raises ``IsolationError``.
        """
        directory = self._open(create=False)
        name = _RELEASED + key
        if directory is None or "/" in name or "\0" in name or len(name) > _MOST:
            return  # nothing is held, or nothing by such a key
        try:
            flags = os.O_WRONLY | os.O_CREAT | _PLAIN
            os.close(os.open(name, flags, 0o600, dir_fd=directory))
        except OSError as error:
            raise _unusable(name, error) from error

    def released(self) -> set[str]:
        """Return the keys of the claims whose VMs have ended, as far as that was noted."""
        directory = self._open(create=False)
        names = [] if directory is None else os.listdir(directory)  # noqa: PTH208 -- as in System
        return {name.removeprefix(_RELEASED) for name in names if name.startswith(_RELEASED)}

    def forget_release(self, key: str) -> None:
        """Forget a VM's end: its claim is off the record, or new. Raises ``IsolationError``."""
        self._unlink(_RELEASED + key)

    def waiter(self) -> str:
        """Return what was noted of who waits for what is owed; empty for nobody.

        Raises ``IsolationError``.
        """
        return self._read(_WAITER) or ""

    def note_waiter(self, text: str) -> None:
        """Note who waits for what is owed, or with an empty text that nobody does any more.

        Raises ``IsolationError``.
        """
        if text:
            self._replace(_WAITER, text)
        else:
            self._unlink(_WAITER)

    def _read(self, name: str) -> str | None:
        """Return the text of a file of ours; None where there is none."""
        directory = self._open(create=False)
        if directory is None:
            return None
        try:
            descriptor = os.open(name, os.O_RDONLY | _PLAIN, dir_fd=directory)
            with os.fdopen(descriptor, "rb") as file:
                _check_record(name, os.fstat(descriptor))
                return file.read(MAX_BYTES).decode()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(name, error) from error

    def _replace(self, name: str, text: str) -> None:
        """Write a file of ours anew, in one step."""
        directory = self._open(create=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _PLAIN
            descriptor = os.open(name + _NEW, flags, 0o600, dir_fd=directory)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode())
            os.rename(name + _NEW, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            raise _unusable(name, error) from error

    def _unlink(self, name: str) -> None:
        directory = self._open(create=False)
        if directory is not None:
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                return
            except OSError as error:
                raise _unusable(name, error) from error

    def lock(
        self, system: System, timeout: float, name: str = RECORD
    ) -> AbstractContextManager[object]:
        """Hold a lock, that of the record without a name, waiting at most ``timeout`` seconds.

        Entering raises ``LockedError`` when another holds it for longer.
        """
        return _Lock(self._open(create=True), name, system, timeout)

    def is_busy(self, system: System, name: str = RECORD) -> bool:
        """Return whether somebody holds a lock now, without holding it for a moment.

        A hook that does not wait would be kept from its work by that. ``/proc/locks`` names files
        by device and inode (``lock_get_status()``, fs/locks.c). Raises ``IsolationError``.
        """
        directory = self._open(create=False)
        if directory is None:
            return False
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            lines = system.lines("proc/locks")
        except FileNotFoundError:  # nobody ever held it, or a tree of files has no locks
            return False
        except OSError as error:
            raise _unusable(name, error) from error
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        file = f"{device}:{status.st_ino}"
        return any("FLOCK" in words and file in words for words in map(str.split, lines))

    def close(self) -> None:
        """Let go of the directory."""
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def _open(self, *, create: bool) -> int | None:
        """Return the directory's descriptor; None when it is not there and shall not be made."""
        if self._directory is not None:
            return self._directory
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in PATH:
                if create:
                    _make(name, descriptor)
                below = os.open(name, flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            _check_own(os.fstat(descriptor))
        except FileNotFoundError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EACCES:
                raise IsolationError(
                    "/run/kvmhooks: cannot be read: what VMs hold of the host is root's to see; "
                    "run as root"
                ) from error
            raise IsolationError(
                f"/run/kvmhooks: {error.strerror}: expected root's own directory, and no link"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        self._directory = descriptor
        return descriptor


def _make(name: str, parent: int) -> None:
    try:
        os.mkdir(name, 0o700 if name == PATH[-1] else 0o755, dir_fd=parent)
    except FileExistsError:
        return


def _unusable(name: str, error: OSError | UnicodeDecodeError) -> IsolationError:
    why = error.strerror if isinstance(error, OSError) else f"found {error.reason}, expected UTF-8"
    return IsolationError(f"/run/kvmhooks/{name}: {why}")


def _check_record(name: str, status: os.stat_result) -> None:
    """Raise ``IsolationError`` for what is no record of ours, before it is read."""
    mode, size = status.st_mode, status.st_size
    if not stat.S_ISREG(mode) or status.st_uid != os.geteuid() or mode & 0o077:
        kind = "a file" if stat.S_ISREG(mode) else "no regular file"
        raise IsolationError(
            f"/run/kvmhooks/{name}: found {kind} of user {status.st_uid}, mode "
            f"{stat.S_IMODE(mode):o}, expected a file of user {os.geteuid()}, mode 600"
        )
    if size >= MAX_BYTES:
        raise IsolationError(
            f"/run/kvmhooks/{name}: found {size} bytes, expected fewer than {MAX_BYTES}"
        )


def _check_own(status: os.stat_result) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise IsolationError(
            f"/run/kvmhooks: found owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}, "
            f"expected owner {os.geteuid()}, mode 700"
        )


class _Lock:
    """The kernel drops a ``flock(2)`` when its holder dies, however that happens."""

    def __init__(self, directory: int | None, name: str, system: System, timeout: float) -> None:
        self._directory = directory
        self._name = name
        self._system = system
        self._timeout = timeout
        self._descriptor = -1

    def __enter__(self) -> object:
        try:
            flags = os.O_RDWR | os.O_CREAT | _PLAIN
            self._descriptor = os.open(self._name, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise _unusable(self._name, error) from error
        try:
            self._wait()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _wait(self) -> None:
        until = self._system.now() + self._timeout
        while not _try_lock(self._descriptor):
            if self._system.now() >= until:
                raise LockedError(
                    f"/run/kvmhooks/{self._name}: another hook has held it for "
                    f"{self._timeout:.0f} s; `kvmhooks status` shows what is held"
                )
            self._system.sleep(_POLL)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True
