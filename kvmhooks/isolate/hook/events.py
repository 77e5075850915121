"""The events of a follower: files that change, devices that come, QEMU's end.

inotify(7) tells of files and directories, those of cgroups included, since they are made and
written through the VFS; it does not of files that the kernel itself makes in procfs and sysfs
(interrupts). Device events come over netlink (``NETLINK_KOBJECT_UEVENT``, lib/kobject_uevent.c),
the end of a process through its pidfd_open(2). Python has no inotify, so it is called through
``ctypes``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvmhooks.isolate.system.system import System

_CHANGED: Final = 0x2 | 0x80 | 0x100 | 0x200
"""IN_MODIFY, IN_MOVED_TO, IN_CREATE, IN_DELETE."""

_MADE: Final = 0x100 | 0x0100_0000
"""IN_CREATE, IN_ONLYDIR."""

_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT: Final = struct.Struct("iIII")

_UEVENTS: Final = 15
_FROM_KERNEL: Final = 1
_SUBSYSTEMS: Final = {b"SUBSYSTEM=" + name for name in (b"pci", b"net", b"vfio", b"cpu")}
_ACTIONS: Final = {b"ACTION=" + name for name in (b"add", b"bind", b"online")}

ENDED: Final = "ended"
DEVICE: Final = "device"
LOST: Final = "lost"
"""There were more events than the kernel keeps (IN_Q_OVERFLOW)."""


class Events:
    """The events that wake a follower. Raises ``OSError`` where the kernel gives none of them."""

    def __init__(self, system: System, pid: int) -> None:
        self._system = system
        self._library = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._called(self._library.inotify_init1(_FLAGS))
        self._paths: dict[int, str] = {}
        self._poll = select.poll()
        self._poll.register(self._inotify, select.POLLIN)
        self._pidfd: int | None = None
        self._uevents: socket.socket | None = None
        if system.is_real:
            self._pidfd = os.pidfd_open(pid)
            self._poll.register(self._pidfd, select.POLLIN)

    def listen(self) -> None:
        """Be told of devices, too."""
        if self._pidfd is None or self._uevents is not None:
            return
        self._uevents = _listen()
        if self._uevents is not None:
            self._poll.register(self._uevents, select.POLLIN)

    def watch(self, path: str, *, is_made_only: bool = False) -> None:
        """Be told of a file, or of what a directory holds, if it is there; twice does no harm.

        Of what a group holds, the kernel tells more than anybody needs to know:
        ``cgroup.events`` is modified whenever its last task goes. So ``is_made_only``.
        """
        where = os.fsencode(self._system.at(path))
        what = _MADE if is_made_only else _CHANGED
        number = self._library.inotify_add_watch(self._inotify, where, what)
        if number >= 0:
            self._paths[number] = path
        elif ctypes.get_errno() not in {errno.ENOENT, errno.ENOTDIR, errno.ENOSPC}:
            self._called(number)

    def rest(self, seconds: float) -> bool:
        """Let events gather for this long; return whether QEMU has ended meanwhile."""
        if self._pidfd is None:
            self._system.sleep(seconds)
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def wait(self, seconds: float) -> set[str]:
        """Return the events in this time: paths, ``DEVICE``, ``LOST``, ``ENDED``; or nothing."""
        found = set()
        for descriptor, _ in self._poll.poll(seconds * 1000):
            if descriptor == self._pidfd:
                found.add(ENDED)
            elif descriptor == self._inotify:
                found |= self._read_paths()
            else:
                found |= self._read_uevents()
        return found

    def _read_paths(self) -> set[str]:
        """Return ``DIRECTORY/NAME`` or the path of a file, or ``LOST``."""
        found: set[str] = set()
        try:
            data = os.read(self._inotify, 1 << 16)
        except BlockingIOError:
            return found
        while data:
            number, _, _, length = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode(errors="replace")
            path = self._paths.get(number)
            found.add(LOST if path is None else f"{path}/{name}".rstrip("/"))
            data = data[_EVENT.size + length :]
        return found

    def _read_uevents(self) -> set[str]:
        found = set()
        while self._uevents is not None:
            try:
                lines = self._uevents.recv(1 << 14).split(b"\0")
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: some were lost
                return {DEVICE}
            if not _SUBSYSTEMS.isdisjoint(lines) and not _ACTIONS.isdisjoint(lines):
                found.add(DEVICE)
        return found

    @staticmethod
    def _called(value: int) -> int:
        if value < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "inotify")
        return value


def _listen() -> socket.socket | None:
    """Return the kernel's device events; None in a network namespace that is given none."""
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    peer = socket.socket(socket.AF_NETLINK, kind, _UEVENTS)
    try:
        peer.bind((0, _FROM_KERNEL))
    except OSError:
        peer.close()
        return None
    return peer
