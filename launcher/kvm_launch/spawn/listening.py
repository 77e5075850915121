"""The listeners at a path: asked of the kernel, since some take one connection only.

It tells of each socket the inode that it is bound to (sock_diag(7), linux/unix_diag.h). Names play
no part: any user may give a socket one with a line's end in it, or bind the same path in a mount
namespace of his own.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SOCKETS: Final = Path("/proc/net/unix")

_SOCK_DIAG: Final = 4
"""``NETLINK_SOCK_DIAG`` (linux/netlink.h)."""
_BY_FAMILY: Final = 20
"""``SOCK_DIAG_BY_FAMILY`` (linux/sock_diag.h): the type of a request and of each answer."""
_ERROR, _DONE = 2, 3
"""``NLMSG_ERROR`` and ``NLMSG_DONE`` (linux/netlink.h)."""
_DUMP: Final = 0x301
"""``NLM_F_REQUEST | NLM_F_DUMP``: all sockets, not one."""
_LISTEN: Final = 10
"""``TCP_LISTEN`` (net/tcp_states.h), a state of all stream sockets."""
_SHOW_VFS: Final = 2
_VFS: Final = 1
"""``UDIAG_SHOW_VFS`` asks for the attribute ``UNIX_DIAG_VFS``: an inode, and its device."""

_HEADER: Final = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence, port."""
_REQUEST: Final = struct.Struct("=BBHIIIII")
"""``struct unix_diag_req``."""
_ANSWER: Final = 16
"""Bytes of ``struct unix_diag_msg``, which the attributes follow."""
_SECONDS: Final = 1.0

_LINE: Final = re.compile(
    rb"[0-9a-f]+: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) [0-9A-F]{4} [0-9A-F]{2} +[0-9]+ (.*)",
    re.DOTALL,
)
"""``unix_seq_show()`` (net/unix/af_unix.c): the flags, and the name."""
_ACCEPTS: Final = 0x10000
"""``__SO_ACCEPTCON`` (include/linux/net.h)."""


def listens(path: Path) -> bool:
    """Return whether somebody listens at ``path``; nobody is connected to.

    A kernel without ``CONFIG_UNIX_DIAG`` tells whether a socket is bound there, and in
    ``/proc/net/unix`` by name whether one listens.
    """
    try:
        place = _place_of(path)
        return place is not None and place in set(_listening())
    except OSError:
        return _is_bound(path) and _is_in(SOCKETS, os.fsencode(path))


def _place_of(path: Path) -> tuple[int, int] | None:
    """Return the inode and the device of a socket's file as the kernel has them inside.

    stat(2) tells other ones of some file systems (btrfs, overlayfs); proc_pid_fdinfo(5) and
    proc_pid_mountinfo(5) do not. Raises ``OSError`` for a mount that is not listed.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # it is not there yet
        return None
    try:
        status = os.fstat(descriptor)
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes().split(b"\n")
    finally:
        os.close(descriptor)
    if not stat.S_ISSOCK(status.st_mode):
        return None
    facts = dict(line.split(b":\t", 1) for line in lines if b":\t" in line)
    inode = int(facts.get(b"ino", status.st_ino))  # told from Linux 5.14 on
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n"):
        mount, _, rest = line.partition(b" ")
        if mount == facts[b"mnt_id"]:
            major, _, minor = rest.split(b" ", 2)[1].partition(b":")
            return inode & 0xFFFF_FFFF, int(major) << 20 | int(minor)  # MKDEV(), linux/kdev_t.h
    raise OSError(errno.ENOENT, "no such mount", str(path))


def _listening() -> Iterator[tuple[int, int]]:
    """Give the inode and the device of each socket that listens. Raises ``OSError``."""
    wanted = _REQUEST.pack(socket.AF_UNIX, 0, 0, 1 << _LISTEN, 0, _SHOW_VFS, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as peer:
        peer.settimeout(_SECONDS)
        peer.send(_HEADER.pack(_HEADER.size + len(wanted), _BY_FAMILY, _DUMP, 1, 0) + wanted)
        while True:
            data = peer.recv(1 << 16)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", message)[0]
                    raise OSError(number, os.strerror(number), "sock_diag")
                yield from _places_in(message[_ANSWER:])


def _places_in(attributes: bytes) -> Iterator[tuple[int, int]]:
    """Give what the attribute ``UNIX_DIAG_VFS`` says, which a socket with a path has."""
    while attributes:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind == _VFS:
            yield struct.unpack_from("=II", attributes, 4)
        attributes = attributes[(length + 3) & ~3 :]


def _is_bound(path: Path) -> bool:
    """Return whether a stream socket is bound to this very file.

    A socket of another type is refused with ``EPROTOTYPE`` before anything else is done, and a file
    that no socket is bound to with ``ECONNREFUSED`` (``unix_find_bsd()``, net/unix/af_unix.c).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        try:
            return peer.connect_ex(os.fspath(path)) == errno.EPROTOTYPE
        except OSError:  # a path of more than 107 bytes, at which nobody can listen
            return False


def _is_in(table: Path, name: bytes) -> bool:
    """Return whether ``/proc/net/unix`` has a socket of this name that listens."""
    lines = map(_LINE.fullmatch, table.read_bytes().split(b"\n"))
    return any(
        line is not None and line[2] == name and int(line[1], 16) & _ACCEPTS for line in lines
    )
