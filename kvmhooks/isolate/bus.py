"""As much of D-Bus as talking to systemd's manager takes, and no more.

The wire format is that of the D-Bus specification, version 0.4
(https://dbus.freedesktop.org/doc/dbus-specification.html: «SASL profile», «Message protocol»,
«Marshaling»); the methods are those of ``org.freedesktop.systemd1.Manager``
(https://www.freedesktop.org/software/systemd/man/latest/org.freedesktop.systemd1.html). One
connection and one message per unit replace a fork of ``systemctl`` each.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Self

from kvmhooks.errors import IsolationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvmhooks.values import CpuSet

MAX_MESSAGE: Final = 1 << 20
"""A reply larger than this is refused (the protocol allows 128 MiB)."""

CALL: Final = 1
RETURN: Final = 2
ERROR: Final = 3

_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 5, 6, 8
_ERROR_NAME: Final = 4
_Address = tuple[str, str, str]
"""A bus name, an object path, an interface."""

_HEADER: Final = struct.Struct("<BBBBIII")


class BusError(IsolationError):
    """systemd refused a call, or the bus did not answer."""


class Systemd:
    """A connection to systemd's manager, opened by the first call."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._peer: socket.socket | None = None
        self._serial = 0

    def set_cpus(self, unit: str, cpus: CpuSet) -> None:
        """Set a unit's ``AllowedCPUs`` until the next boot.

        The value is a bit mask, byte by byte from the lowest CPU (systemd.resource-control(5) and
        ``bus_cgroup_set_cpuset()``, src/core/dbus-cgroup.c). Raises ``BusError``.
        """
        mask = cpus.mask.to_bytes((cpus.mask.bit_length() + 7) // 8 or 1, "little")

        def properties(body: Writer) -> None:
            body.property("AllowedCPUs", "ay")
            with body.array(1):
                body.raw(mask)

        self._set(unit, properties)

    def set_number(self, unit: str, name: str, value: int) -> None:
        """Set a property such as ``CPUWeight`` until the next boot. Raises ``BusError``."""

        def properties(body: Writer) -> None:
            body.property(name, "t")
            body.uint64(value)

        self._set(unit, properties)

    def _set(self, unit: str, properties: Callable[[Writer], None]) -> None:
        body = Writer()
        body.text(unit)
        body.uint32(1)  # a D-Bus boolean: runtime, that is below /run
        with body.array(8):
            properties(body)
        self._call("SetUnitProperties", "sba(sv)", body.data)

    def reload(self) -> None:
        """Read the unit files again. Raises ``BusError``."""
        self._call("Reload", "", b"")

    def start(self, unit: str) -> None:
        """Start a unit, and do not wait for it. Raises ``BusError``."""
        body = Writer()
        body.text(unit)
        body.text("replace")
        self._call("StartUnit", "ss", body.data)

    def start_scope(self, unit: str, pid: int, *, parent: str, about: str, before: str) -> None:
        """Start a transient scope around a process, in the slice ``parent``, its groups left to us.

        systemd moves the process when it comes to it: systemd.scope(5), and «Delegation» in its
        CGROUP_DELEGATION page. The unit is forgotten with its last process, however that ended
        (``CollectMode``). At a shutdown it is stopped after the unit ``before``, if there is one
        (systemd.unit(5): the order of starts, reversed). Raises ``BusError``.
        """

        def properties(body: Writer) -> None:
            body.property("Slice", "s")
            body.text(parent)
            body.property("Delegate", "b")
            body.uint32(1)
            body.property("PIDs", "au")
            with body.array(4):
                body.uint32(pid)
            if before:
                body.property("Before", "as")
                with body.array(4):
                    body.text(before)

        self._start_transient(unit, about, properties)

    def start_service(self, unit: str, words: Sequence[str], *, about: str) -> None:
        """Start a transient service that runs a program, again 5 s after it failed.

        systemd.service(5): it is forgotten once it has ended, however that was. Raises
        ``BusError``, also when there is such a unit already.
        """

        def properties(body: Writer) -> None:
            body.property("Restart", "s")
            body.text("on-failure")
            body.property("RestartUSec", "t")
            body.uint64(5_000_000)
            body.property("ExecStart", "a(sasb)")
            with body.array(8):
                body.align(8)
                body.text(words[0])
                with body.array(4):
                    for word in words:
                        body.text(word)
                body.uint32(0)  # a failure is one

        self._start_transient(unit, about, properties)

    def _start_transient(self, unit: str, about: str, properties: Callable[[Writer], None]) -> None:
        """Start a unit that is forgotten once it has ended; ``properties`` marshals its own."""
        body = Writer()
        body.text(unit)
        body.text("fail")
        with body.array(8):
            for name, value in (("Description", about), ("CollectMode", "inactive-or-failed")):
                body.property(name, "s")
                body.text(value)
            properties(body)
        with body.array(8):  # no auxiliary units
            pass
        self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", body.data)

    def close(self) -> None:
        """Hang up."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, member: str, signature: str, body: bytes) -> None:
        try:
            peer = self._connect()
            self._send(peer, _MANAGER, member, signature, body)
            self._wait(peer, member)
        except (OSError, struct.error, ValueError, IndexError) as error:
            self.close()
            raise BusError(f"systemd: {member}: {error or type(error).__name__}") from error

    def _connect(self) -> socket.socket:
        if self._peer is not None:
            return self._peer
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            peer.settimeout(self._timeout)
            peer.connect(self._path)
            _log_in(peer)
            self._send(peer, _BUS, "Hello", "", b"")
            self._wait(peer, "Hello")
        except BaseException:
            peer.close()
            raise
        self._peer = peer
        return peer

    def _send(
        self, peer: socket.socket, to: _Address, member: str, signature: str, body: bytes
    ) -> None:
        self._serial += 1
        peer.sendall(message(CALL, self._serial, call_fields(to, member, signature), body))

    def _wait(self, peer: socket.socket, member: str) -> None:
        """Read messages until the reply to the last call; signals in between are skipped."""
        while True:
            kind, fields, body = read_message(peer)
            if fields.get(_REPLY_SERIAL) != self._serial:
                continue
            if kind == ERROR:
                said = Reader(body).text() if fields.get(_SIGNATURE, "").startswith("s") else ""
                raise BusError(f"systemd: {member}: {fields.get(_ERROR_NAME)}: {said[:300]}")
            if kind == RETURN:
                return


def _log_in(peer: socket.socket) -> None:
    """SASL EXTERNAL: the kernel tells the bus our uid. Raises ``OSError``."""
    who = str(os.geteuid()).encode().hex()
    peer.sendall(f"\0AUTH EXTERNAL {who}\r\n".encode())
    reply = b""
    while not reply.endswith(b"\r\n"):
        part = peer.recv(1)
        if not part or len(reply) > 1_000:
            raise ConnectionError("the bus closed the connection at log-in")
        reply += part
    if not reply.startswith(b"OK "):
        raise PermissionError(f"the bus refused the log-in: {reply[:80]!r}")
    peer.sendall(b"BEGIN\r\n")


_MANAGER: Final = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class Writer:
    """Marshals values, little-endian, aligned from the start of the body."""

    def __init__(self) -> None:
        self.data = b""

    def align(self, width: int) -> None:
        """Pad with zeros."""
        self.data += bytes(-len(self.data) % width)

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.data += data

    def uint32(self, value: int) -> None:
        """A 32-bit number."""
        self.align(4)
        self.data += struct.pack("<I", value)

    def uint64(self, value: int) -> None:
        """A 64-bit number."""
        self.align(8)
        self.data += struct.pack("<Q", value)

    def text(self, value: str) -> None:
        """A string or an object path."""
        encoded = value.encode("utf-8", "surrogateescape")
        self.uint32(len(encoded))
        self.data += encoded + b"\0"

    def signature(self, value: str) -> None:
        """A signature."""
        self.data += bytes([len(value)]) + value.encode() + b"\0"

    def property(self, name: str, signature: str) -> None:
        """The beginning of a ``(sv)``: what follows is the value."""
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
        """Whether all was read."""
        return self._at >= len(self._data)

    def align(self, width: int) -> None:
        """Skip padding."""
        self._at += -self._at % width

    def uint32(self) -> int:
        """A 32-bit number."""
        self.align(4)
        (value,) = struct.unpack_from(self._order + "I", self._data, self._at)
        self._at += 4
        return int(value)

    def byte(self) -> int:
        """One byte."""
        self._at += 1
        return self._data[self._at - 1]

    def text(self) -> str:
        """A string or an object path."""
        return self._take(self.uint32())

    def signature(self) -> str:
        """A signature."""
        return self._take(self.byte())

    def _take(self, length: int) -> str:
        value = self._data[self._at : self._at + length]
        if len(value) != length:
            raise ValueError("a string ends beyond its message")
        self._at += length + 1
        return value.decode()


def call_fields(to: _Address, member: str, signature: str) -> tuple[tuple[int, str, str], ...]:
    """The header fields of a method call."""
    name, path, interface = to
    fields = ((_PATH, "o", path), (_INTERFACE, "s", interface), (_MEMBER, "s", member),
              (_DESTINATION, "s", name))  # fmt: skip
    return (*fields, (_SIGNATURE, "g", signature)) if signature else fields


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
    """(kind, header fields, body) of the next message. Raises ``OSError`` or ``ValueError``."""
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
