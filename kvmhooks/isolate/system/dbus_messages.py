"""Messages of D-Bus as bytes: the part of the format that talking to systemd's manager takes.

It is that of the D-Bus specification, version 0.4
(https://dbus.freedesktop.org/doc/dbus-specification.html: «Message protocol», «Marshaling»).
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket

MAX_MESSAGE: Final = 1 << 20
"""A reply larger than this is refused (the protocol allows 128 MiB)."""

CALL: Final = 1
RETURN: Final = 2
ERROR: Final = 3

_PATH, _INTERFACE, _MEMBER, REPLY_SERIAL, _DESTINATION, SIGNATURE = 1, 2, 3, 5, 6, 8
ERROR_NAME: Final = 4
Address = tuple[str, str, str]
"""A bus name, an object path, an interface."""

NATIVE: Final = "<" if sys.byteorder == "little" else ">"
"""The byte order of all peers on this machine, in which they marshal their answers."""

_HEADER: Final = struct.Struct("<BBBBIII")


class Writer:
    """Marshals values, little-endian, aligned from the start of the body."""

    def __init__(self) -> None:
        self.data = b""

    def align(self, width: int) -> None:
        """Pad with zeros."""
        self.data += bytes(-len(self.data) % width)

    def raw(self, data: bytes) -> None:
        """Add bytes as they are."""
        self.data += data

    def uint32(self, value: int) -> None:
        """Add a 32-bit number."""
        self.align(4)
        self.data += struct.pack("<I", value)

    def uint64(self, value: int) -> None:
        """Add a 64-bit number."""
        self.align(8)
        self.data += struct.pack("<Q", value)

    def text(self, value: str) -> None:
        """Add a string or an object path."""
        encoded = value.encode("utf-8", "surrogateescape")
        self.uint32(len(encoded))
        self.data += encoded + b"\0"

    def signature(self, value: str) -> None:
        """Add a signature."""
        self.data += bytes([len(value)]) + value.encode() + b"\0"

    def property(self, name: str, signature: str) -> None:
        """Add the beginning of a ``(sv)``: the value comes next."""
        self.align(8)
        self.text(name)
        self.signature(signature)

    def array(self, width: int) -> _Array:
        """Marshal what follows within ``with`` as an array of elements aligned to ``width``."""
        return _Array(self, width)


class _Array:
    """The length of an array, known once its elements are written."""

    def __init__(self, writer: Writer, width: int) -> None:
        self._writer, self._width = writer, width

    def __enter__(self) -> None:
        self._writer.uint32(0)
        self._place = len(self._writer.data) - 4
        self._writer.align(self._width)
        self._start = len(self._writer.data)

    def __exit__(self, *_: object) -> None:
        data = self._writer.data
        length = struct.pack("<I", len(data) - self._start)
        self._writer.data = data[: self._place] + length + data[self._place + 4 :]


class Reader:
    """Unmarshals what systemd and the bus answer."""

    def __init__(self, data: bytes, order: str = "<") -> None:
        self._data, self._at, self._order = data, 0, order

    @property
    def is_done(self) -> bool:
        """All was read."""
        return self._at >= len(self._data)

    def align(self, width: int) -> None:
        """Skip padding."""
        self._at += -self._at % width

    def uint32(self) -> int:
        """Read a 32-bit number."""
        self.align(4)
        (value,) = struct.unpack_from(self._order + "I", self._data, self._at)
        self._at += 4
        return int(value)

    def byte(self) -> int:
        """Read one byte."""
        self._at += 1
        return self._data[self._at - 1]

    def text(self) -> str:
        """Read a string or an object path."""
        return self._take(self.uint32())

    def signature(self) -> str:
        """Read a signature."""
        return self._take(self.byte())

    def raw(self) -> bytes:
        """Read an array of bytes."""
        length = self.uint32()
        value = self._data[self._at : self._at + length]
        if len(value) != length:
            raise ValueError("an array ends beyond its message")
        self._at += length
        return value

    def _take(self, length: int) -> str:
        value = self._data[self._at : self._at + length]
        if len(value) != length:
            raise ValueError("a string ends beyond its message")
        self._at += length + 1
        return value.decode()


def call_fields(to: Address, member: str, signature: str) -> tuple[tuple[int, str, str], ...]:
    """Return the header fields of a method call."""
    name, path, interface = to
    fields = ((_PATH, "o", path), (_INTERFACE, "s", interface), (_MEMBER, "s", member),
              (_DESTINATION, "s", name))  # fmt: skip
    return (*fields, (SIGNATURE, "g", signature)) if signature else fields


def message(
    kind: int, serial: int, fields: tuple[tuple[int, str, str | int], ...], body: bytes
) -> bytes:
    """Marshal a message: the fixed header, its fields padded to 8 bytes, the body."""
    header = Writer()
    for code, signature, value in fields:
        header.align(8)
        header.raw(bytes([code]))
        header.signature(signature)
        if isinstance(value, int):
            header.uint32(value)
        elif signature == "g":
            header.signature(value)
        else:
            header.text(value)
    # The array's elements begin at byte 16, a multiple of 8: their padding is the same from 0.
    start = _HEADER.pack(ord("l"), kind, 0, 1, len(body), serial, len(header.data))
    return start + header.data + bytes(-len(header.data) % 8) + body


def read_message(peer: socket.socket) -> tuple[int, dict[int, Any], bytes]:
    """Read the next message: kind, header fields, body. Raises ``OSError`` or ``ValueError``."""
    start = _exactly(peer, 16)
    order = {ord("l"): "<", ord("B"): ">"}.get(start[0])
    if order is None:
        raise ValueError(f"no D-Bus message begins with {start[:4]!r}")
    length, _, fields_length = struct.unpack(order + "III", start[4:])
    if length + fields_length > MAX_MESSAGE:
        raise ValueError(f"a message of {length + fields_length} bytes")
    reader = Reader(_exactly(peer, fields_length), order)
    _exactly(peer, -fields_length % 8)
    fields: dict[int, Any] = {}
    while not reader.is_done:
        reader.align(8)
        code = reader.byte()
        kind = reader.signature()
        if kind == "u":
            fields[code] = reader.uint32()
        elif kind == "g":
            fields[code] = reader.signature()
        elif kind in {"s", "o"}:
            fields[code] = reader.text()
        else:
            raise ValueError(f"a header field of type {kind!r}")
    return start[1], fields, _exactly(peer, length)


def _exactly(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = peer.recv(count - len(data))
        if not part:
            raise ConnectionError("the bus closed the connection")
        data += part
    return data
