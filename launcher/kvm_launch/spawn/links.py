"""Network interfaces of the kernel that are made and removed: rtnetlink(7), netdevice(7).

Nothing of it changes what is not ours: an interface is named by whoever made it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Final

IFNAMSIZ: Final = 16
IFF_UP: Final = 1

# linux/rtnetlink.h, linux/netlink.h, linux/if_link.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_SETLINK: Final = 19
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_CREATE_NEW: Final = 0x600
NLMSG_ERROR: Final = 2
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_LINK: Final = 5
IFLA_LINKINFO: Final = 18
IFLA_IFALIAS: Final = 20
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2

# linux/sockios.h
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCGIFMTU: Final = 0x8921
SIOCSIFMTU: Final = 0x8922
SIOCSIFHWADDR: Final = 0x8924
SIOCBRADDIF: Final = 0x89A2
ARPHRD_ETHER: Final = 1

_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute of a message, padded to four bytes."""
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def add(
    name: str, kind: str, *, below: str | None = None, mac: str | None = None, data: bytes = b""
) -> None:
    """Make an interface ``name`` of a ``kind``, on the interface ``below``.

    ``data`` are the attributes of the kind. Raises ``OSError``.
    """
    info = attribute(IFLA_INFO_KIND, kind.encode())
    if data:
        info += attribute(IFLA_INFO_DATA, data)
    body = attribute(IFLA_IFNAME, name.encode() + b"\0")
    if below is not None:
        body += attribute(IFLA_LINK, struct.pack("=I", index_of(below)))
    if mac is not None:
        body += attribute(IFLA_ADDRESS, bytes_of(mac))
    body += attribute(IFLA_LINKINFO, info)
    _ask(RTM_NEWLINK, NLM_F_CREATE_NEW, 0, body)


def remove(name: str) -> None:
    """Remove an interface; one that is not there is no error. Raises ``OSError``."""
    try:
        _ask(RTM_DELLINK, 0, index_of(name), b"")
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def set_alias(name: str, alias: str) -> None:
    """Say of an interface what it is for. Raises ``OSError``."""
    _ask(RTM_SETLINK, 0, index_of(name), attribute(IFLA_IFALIAS, alias.encode()))


def index_of(name: str) -> int:
    """Return the number of an interface. Raises ``OSError`` with a number, unlike Python's own."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name) from error


def bring_up(name: str) -> None:
    """Set an interface up. Raises ``OSError``."""
    (flags,) = struct.unpack("=h", _request(SIOCGIFFLAGS, name, b"")[:2])
    _request(SIOCSIFFLAGS, name, struct.pack("=h", flags | IFF_UP))


def mtu_of(name: str) -> int:
    """Return an interface's MTU. Raises ``OSError``."""
    (mtu,) = struct.unpack("=i", _request(SIOCGIFMTU, name, b"")[:4])
    return int(mtu)


def set_mtu(name: str, mtu: int) -> None:
    """Set an interface's MTU. Raises ``OSError``."""
    _request(SIOCSIFMTU, name, struct.pack("=i", mtu))


def set_mac(name: str, mac: str) -> None:
    """Set an interface's address. Raises ``OSError``."""
    _request(SIOCSIFHWADDR, name, struct.pack("=H", ARPHRD_ETHER) + bytes_of(mac))


def add_port(bridge: str, port: str) -> None:
    """Make an interface a port of a bridge. Raises ``OSError``."""
    _request(SIOCBRADDIF, bridge, struct.pack("=i", index_of(port)))


def bytes_of(mac: str) -> bytes:
    """Return the six bytes of a MAC address."""
    return bytes.fromhex(mac.replace(":", ""))


def _request(number: int, name: str, value: bytes) -> bytes:
    """Return one request about an interface (``struct ifreq``); give its union back."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as channel:
        asked = struct.pack(f"={IFNAMSIZ}s24s", name.encode(), value)
        return fcntl.ioctl(channel, number, asked)[IFNAMSIZ:]


def _ask(kind: int, flags: int, index: int, attributes: bytes) -> None:
    """Send one message about an interface, and wait for what the kernel says to it."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attributes
    flags |= NLM_F_REQUEST | NLM_F_ACK
    message = _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        channel.sendto(message, (0, 0))
        answer = channel.recv(1 << 16)
    _, answer_type, _, _, _ = _HEADER.unpack_from(answer)
    (code,) = struct.unpack_from("=i", answer, _HEADER.size)
    if answer_type != NLMSG_ERROR or code != 0:
        raise OSError(-code, os.strerror(-code))
