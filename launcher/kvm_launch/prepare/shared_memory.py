"""The file of the memory that a guest shares with a program of the host.

Anybody may write to ``/dev/shm``, and there remove what is his own alone (the sticky bit). So a
file is made where nothing is, and what is there is used only if it is whose it is to be. Its owner
can put a link in its place at any time, so QEMU gets it open, and never opens it by its name. It
stays when the VM ends, as Looking Glass has it open then.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from kvm_launch.prepare.user import User, user_named
from kvmhooks.errors import LaunchError, Problem
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import ByteSize

FOLDER: Final = Path("/dev/shm")  # noqa: S108 -- where QEMU opens it, and libvirt

AT: Final = "shared_memory"

BLOCK: Final = 512
"""Bytes of a block of ``st_blocks`` (stat(3type))."""


@frozen
class Owners:
    """The file's user, who views it, and its group, which is QEMU's."""

    uid: int
    gid: int
    qemu: int
    """QEMU's user."""
    groups: tuple[int, ...]
    """QEMU's further groups."""

    @property
    def mode(self) -> int:
        """The mode of a new file."""
        return 0o600 if self.uid == self.qemu else 0o660

    def serve(self, status: os.stat_result) -> bool:
        """Return whether a file is the user's, and QEMU may open it."""
        groups = {self.gid, *self.groups}
        bits = 0o6 if status.st_gid not in groups else 0o60
        is_open = self.qemu in {0, status.st_uid} or status.st_mode & bits == bits
        return status.st_uid == self.uid and is_open


def owners_of(spec: VmSpec, user: User | None) -> Owners:
    """Return whose the file is: QEMU's alone, or another user's and QEMU's group's.

    Raises ``SpecError`` for one who is not there, or to whom nobody but root could give it.
    """
    uid, gid = (os.geteuid(), os.getegid()) if user is None else (user.uid, user.gid)
    name = None if spec.shared_memory is None else spec.shared_memory.user
    viewer = None if name is None else user_named(spec, f"{AT}.user", name)
    viewing = uid if name is None else os.geteuid() if viewer is None else viewer.uid
    return Owners(viewing, gid, uid, () if user is None else user.groups)


def problems(spec: VmSpec, user: User | None, *, folder: Path = FOLDER) -> Iterator[Problem]:
    """Yield what keeps the file that is there from being used, or one from being had at all.

    Raises ``SpecError``.
    """
    memory = spec.shared_memory
    if memory is None:
        return
    owners = owners_of(spec, user)
    path = folder / memory.name
    try:
        status = path.lstat()
    except FileNotFoundError:
        yield from _short(memory.size, folder, 0)
        return
    except OSError as error:
        yield Problem(f"{AT}.name", f"{str(path)!r}: {error.strerror}", "a file, or none")
        return
    wrong = [*_wrong(memory.size, path, status, owners)]
    yield from wrong or _short(memory.size, folder, status.st_blocks * BLOCK)


def _short(size: ByteSize, folder: Path, has: int) -> Iterator[Problem]:
    """Yield that a file system lacks room for a file that has ``has`` bytes of it already.

    A file of tmpfs takes pages when they are written to: QEMU would be killed by SIGBUS then.
    """
    try:
        room = os.statvfs(folder)
    except OSError as error:
        yield Problem(f"{AT}.name", f"{str(folder)!r}: {error.strerror}", "a tmpfs")
        return
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free + has < size:  # one without a limit has no blocks (tmpfs(5))
        total = ByteSize(room.f_blocks * room.f_frsize)
        found = f"{size} where {ByteSize(free)} of {total} are free in {str(folder)!r}"
        yield Problem(f"{AT}.size", found, f"{ByteSize(free + has)} or less, or a larger tmpfs")


def _wrong(size: ByteSize, path: Path, status: os.stat_result, owners: Owners) -> Iterator[Problem]:
    """Yield why a file is not the one to use."""
    if not stat.S_ISREG(status.st_mode):
        yield Problem(f"{AT}.name", f"no file {str(path)!r}", "a file, or none")
    elif status.st_nlink != 1:
        yield Problem(f"{AT}.name", f"{str(path)!r} with {status.st_nlink} names", "its only name")
    elif not owners.serve(status):
        mode = stat.S_IMODE(status.st_mode)
        found = f"{str(path)!r} of user {status.st_uid}, group {status.st_gid}, mode {mode:o}"
        expected = f"none, or one of user {owners.uid}, group {owners.gid}, mode {owners.mode:o}"
        yield Problem(f"{AT}.user", found, expected)
    elif status.st_size not in {0, size}:
        found = f"{str(path)!r} of {status.st_size} bytes"
        yield Problem(f"{AT}.size", found, f"none, or one of {size}")


def make(spec: VmSpec, user: User | None, *, folder: Path = FOLDER) -> list[Path]:
    """Make the file if nothing is there, and give its path. Raises ``LaunchError``."""
    memory = spec.shared_memory
    if memory is None:
        return []
    owners = owners_of(spec, user)
    path = folder / memory.name
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        for problem in problems(spec, user, folder=folder):  # it came since the VM was looked at
            raise LaunchError(str(problem)) from None
        return []
    except OSError as error:
        raise LaunchError(f"{AT}: {path}: {error.strerror}") from error
    try:
        os.ftruncate(descriptor, memory.size)
        os.fchmod(descriptor, owners.mode)
        os.fchown(descriptor, owners.uid, owners.gid)
    except OSError as error:
        path.unlink()
        raise LaunchError(f"{AT}: {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return [path]


@contextmanager
def opened(spec: VmSpec, user: User | None, *, folder: Path = FOLDER) -> Iterator[list[int]]:
    """Give the file's descriptor, for QEMU to inherit; what is looked at is what QEMU maps.

    It is locked until we and QEMU are gone (flock(2)). Raises ``LaunchError`` for another file than
    the VM's, or one that another VM has.
    """
    memory = spec.shared_memory
    if memory is None:
        yield []
        return
    path = folder / memory.name
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would be waited for
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise LaunchError(f"{AT}: {path}: {error.strerror}") from error
    try:
        for problem in _wrong(memory.size, path, os.fstat(descriptor), owners_of(spec, user)):
            raise LaunchError(str(problem))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = Problem(
                f"{AT}.name", f"{str(path)!r} in use by another VM", "a name of its own"
            )
            raise LaunchError(str(taken)) from None
        yield [descriptor]
    finally:
        os.close(descriptor)
