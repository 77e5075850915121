"""The directory of one VM that runs: its sockets, and the lock that keeps a second one away.

It is below ``/run/kvm-launch`` for root and below ``$XDG_RUNTIME_DIR/kvm-launch`` for a user. Only
its owner can look inside, no link is followed, and it is gone when the VM is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kvmhooks.errors import LaunchError
from kvmhooks.signals import held_back

FOLDER: Final = "kvm-launch"

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Nothing can be made there, whatever it is."""

_TAKEN: Final = "name: found {!r}, expected one that does not run already"

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def default_base() -> Path:
    """Return where VMs of this user have their directories.

    No environment variable is looked at for root. Raises ``LaunchError`` for a user without a
    runtime directory (pam_systemd(8) makes one at login).
    """
    if os.geteuid() == 0:
        return Path("/run", FOLDER)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        raise LaunchError(
            "XDG_RUNTIME_DIR: found nothing, expected this user's runtime directory; "
            "log in through a session, or name a directory with --run-dir"
        )
    return Path(runtime, FOLDER)


def own_base() -> Path | None:
    """Return where VMs of this user have their directories; None for a user without a session."""
    try:
        return default_base()
    except LaunchError:
        return None


def base_of(run_dir: Path | None) -> Path:
    """Return where VMs have their directories: the one that was named, else this user's own."""
    return default_base() if run_dir is None else run_dir.absolute()


def private_directory(path: Path) -> int:
    """Open a directory that is ours alone, made if it is not there; give its descriptor.

    Its parent must exist. Raises ``LaunchError`` if it is a link, somebody else's, or open to
    others.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, _DIRECTORY)
    except OSError as error:
        expected = "" if error.errno in _FULL else ": expected a directory of this user's own"
        raise LaunchError(f"{path}: {error.strerror}{expected}") from error
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(descriptor)
        raise LaunchError(
            f"{path}: found owner {status.st_uid} and mode {stat.S_IMODE(status.st_mode):o}, "
            f"expected owner {os.geteuid()} and mode 700"
        )
    return descriptor


@contextmanager
def made(path: Path) -> Iterator[None]:
    """Have what fails when ``path`` is made be a ``LaunchError`` that names it."""
    try:
        yield
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror or error}") from error


@contextmanager
def planning(base: Path) -> Iterator[int]:
    """Be the only one below ``base`` who plans, so that each sees what the one before has taken.

    A plan takes a second at the most; its holder's death frees the lock. It gives the descriptor
    of the lock, which a process that is forked meanwhile has to close. Raises ``LaunchError``.
    """
    directory = private_directory(base)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield directory
        fcntl.flock(directory, fcntl.LOCK_UN)  # whoever has a copy of the descriptor
    finally:
        os.close(directory)


class RunDir:
    """The directory of the VM ``name`` below ``base``, from ``with`` to its end.

    ``taken`` is what is said while another has it.
    """

    def __init__(self, base: Path, name: str, taken: str = "") -> None:
        self.path = base / name
        self._taken = taken or _TAKEN.format(name)
        self._name = name
        self._lock_name = f".{name}.lock"  # no VM's name begins with a dot
        self._base = base
        self._lock: int | None = None
        self._directory: int | None = None
        """Locked as well, and inherited by nobody: QEMU could unlock the other one for all."""

    def __enter__(self) -> Self:
        """Make the directory. Raises ``LaunchError`` when such a VM runs already."""
        try:
            with held_back():
                self._make()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove it with all that is in it."""
        self._leave()

    @property
    def lock(self) -> int:
        """The descriptor of the lock: who inherits it holds the lock as long as they live."""
        assert self._lock is not None, "the directory is not ours yet"
        return self._lock

    def take_name(self, name: str) -> bool:
        """Become the directory of the VM ``name``; return False while that has its own in use.

        The lock stays the one that QEMU has inherited, and only its file gets the name's: before
        the directory does, so that the name is never free meanwhile. Raises ``LaunchError``.
        """
        base = private_directory(self._base)
        try:
            lock = self._lock_of(base, name)
            if lock is None:
                return False
            try:
                if _is_locked(self._base / name):
                    return False
                _remove(self._base / name)
                os.rename(self._lock_name, f".{name}.lock", src_dir_fd=base, dst_dir_fd=base)
                self._lock_name = f".{name}.lock"
                os.rename(self.path.name, name, src_dir_fd=base, dst_dir_fd=base)
            finally:
                os.close(lock)
        finally:
            os.close(base)
        self.path, self._name = self._base / name, name
        return True

    def clear(self) -> None:
        """Remove the sockets in it, for the next start of the VM."""
        for path in self.path.glob("*.sock"):
            path.unlink()

    def write(self, name: str, text: str) -> None:
        """Replace a file in it in one step: a reader sees the old one or the new one.

        Raises ``LaunchError`` when it cannot be written; the old one stays then.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with made(self.path / name):
            descriptor = os.open(self.path, _DIRECTORY)
            try:
                with os.fdopen(os.open(f".{name}", flags, 0o600, dir_fd=descriptor), "w") as file:
                    file.write(text)
                os.rename(f".{name}", name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
            except BaseException:  # what is half written takes room that others need
                with suppress(FileNotFoundError):
                    os.unlink(f".{name}", dir_fd=descriptor)
                raise
            finally:
                os.close(descriptor)

    def _lock_of(self, base: int, name: str) -> int | None:
        with made(self._base / f".{name}.lock"):
            return _take_lock(base, f".{name}.lock")

    def _make(self) -> None:
        base = private_directory(self._base)
        try:
            self._lock = self._lock_of(base, self._name)
        finally:
            os.close(base)
        if self._lock is not None and _is_locked(self.path):
            os.close(self._lock)
            self._lock = None
        if self._lock is None:
            raise LaunchError(self._taken)
        # The locks are ours, so whoever left something here is dead.
        _remove(self.path)
        self._directory = private_directory(self.path)
        fcntl.flock(self._directory, fcntl.LOCK_EX)

    def _leave(self) -> None:
        if self._lock is None:
            return
        with held_back():
            try:
                _remove(self.path)
            finally:
                _unlink_own(self._base / self._lock_name, self._lock)
                os.close(self._lock)
                self._lock = None
                if self._directory is not None:
                    os.close(self._directory)
                    self._directory = None


def check_free(base: Path, name: str) -> None:
    """Raise ``LaunchError`` when the VM ``name`` runs already, as its start would."""
    with made(base / name):
        if not is_free(base, name) or _is_locked(base / name):
            raise LaunchError(_TAKEN.format(name))


def is_free(base: Path, name: str) -> bool:
    """Return whether neither the supervisor nor the QEMU of the VM ``name`` lives.

    Both hold the lock of its directory.
    """
    return not is_held(base / f".{name}.lock")


def unreadable(record: Path) -> str:
    """Return the words for a record of a VM that runs that is not read: another user's is not."""
    us, owner = os.geteuid(), _owner_of(record)
    if owner == us:
        return (
            f"{record}: found no record that can be read, expected that of the VM that runs there"
        )
    return (
        f"{record}: found a VM of {_named(owner)}, expected one of {_named(us)}: "
        "only its owner looks into it"
    )


def _owner_of(path: Path) -> int:
    """Return who has a file; us where it has gone meanwhile."""
    try:
        return path.lstat().st_uid
    except OSError:
        return os.geteuid()


def _named(uid: int) -> str:
    """Return a user's name and number."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def is_held(lock: Path) -> bool:
    """Return whether somebody holds a lock; to look is to hold it for a moment, shared.

    A lock on a file that has no name any more is none. Raises ``OSError``.
    """
    while True:
        try:
            descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if _is_taken(descriptor):
                return True
            if os.path.samestat(lock.stat(follow_symlinks=False), os.fstat(descriptor)):
                return False
        except FileNotFoundError:
            return False
        finally:
            os.close(descriptor)


def _is_locked(path: Path) -> bool:
    """Return whether somebody holds the lock of a VM's directory; one that is not there is free."""
    try:
        descriptor = os.open(path, _DIRECTORY)
    except OSError:  # what else may be there is refused when it is to be removed
        return False
    try:
        return _is_taken(descriptor)
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    """Return whether another open file has what this one is of locked (flock(2))."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _unlink_own(path: Path, lock: int) -> None:
    """Remove the file of a lock, unless it was removed by hand: it may be another's by now."""
    with suppress(FileNotFoundError):
        if os.path.samestat(path.stat(follow_symlinks=False), os.fstat(lock)):
            path.unlink()


def _remove(path: Path) -> None:
    """Remove the directory and the sockets in it, if it is there.

    Raises ``LaunchError`` for a link, or for what no VM leaves behind.
    """
    if not (path.is_symlink() or path.is_dir()):
        return
    try:
        descriptor = os.open(path, _DIRECTORY)
        try:
            for name in os.listdir(descriptor):  # noqa: PTH208 -- of a descriptor
                os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        path.rmdir()
    except OSError as error:
        raise LaunchError(
            f"{path}: {error.strerror}: expected a VM's directory with sockets in it"
        ) from error


def _take_lock(directory: int, name: str) -> int | None:
    """Lock a file in ``directory``; None when somebody else holds it.

    The file is removed by its holder at the end, so a lock on one that is not there any more is
    none, and the next one is tried. QEMU inherits it, and must not fill our file system with it.
    """
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        descriptor = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            os.close(descriptor)
            continue
        if os.path.samestat(now, os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)
