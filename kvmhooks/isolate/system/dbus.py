"""systemd's manager over D-Bus, and no more of that than it takes.

The log-in is that of the D-Bus specification, version 0.4
(https://dbus.freedesktop.org/doc/dbus-specification.html: «SASL profile»); the messages are in
``dbus_messages``, the methods those of ``org.freedesktop.systemd1.Manager``
(https://www.freedesktop.org/software/systemd/man/latest/org.freedesktop.systemd1.html). One
connection and one message per unit replace a fork of ``systemctl`` each.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final, Self

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.system.dbus_messages import (
    CALL,
    ERROR,
    ERROR_NAME,
    NATIVE,
    REPLY_SERIAL,
    RETURN,
    SIGNATURE,
    Address,
    Reader,
    Writer,
    call_fields,
    message,
    read_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvmhooks.values import CpuSet


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

    def affinities(self, seconds: float) -> tuple[dict[str, CpuSet], bool]:
        """Return the loaded units that have ``CPUAffinity=``, and whether all were looked at.

        The look takes no longer than this. Raises ``BusError``.
        """
        from kvmhooks.isolate.system import loaded_units  # noqa: PLC0415 -- most calls need it not

        try:
            return loaded_units.affinities(self, seconds)
        except (struct.error, ValueError, IndexError) as error:
            raise BusError(f"systemd: CPUAffinity: {error or type(error).__name__}") from error

    def ask(
        self, objects: Sequence[Address], member: str, signature: str, body: bytes
    ) -> list[Reader | None]:
        """Call a method of several objects at once; None where one refuses. Raises ``BusError``."""
        try:
            peer = self._connect()
            serials = [self._send(peer, address, member, signature, body) for address in objects]
            return [self._answer(peer, member, serial) for serial in serials]
        except (OSError, struct.error, ValueError, IndexError) as error:
            self.close()
            raise BusError(f"systemd: {member}: {error or type(error).__name__}") from error

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
            self._wait(peer, member, self._send(peer, MANAGER, member, signature, body))
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
            self._wait(peer, "Hello", self._send(peer, _BUS, "Hello", "", b""))
        except BaseException:
            peer.close()
            raise
        self._peer = peer
        return peer

    def _send(
        self, peer: socket.socket, to: Address, member: str, signature: str, body: bytes
    ) -> int:
        self._serial += 1
        peer.sendall(message(CALL, self._serial, call_fields(to, member, signature), body))
        return self._serial

    def _answer(self, peer: socket.socket, member: str, serial: int) -> Reader | None:
        try:
            return self._wait(peer, member, serial)
        except BusError:
            return None

    def _wait(self, peer: socket.socket, member: str, serial: int) -> Reader:
        """Read messages until the reply to a call; signals in between are skipped."""
        while True:
            kind, fields, body = read_message(peer)
            if fields.get(REPLY_SERIAL) != serial:
                continue
            if kind == ERROR:
                reason = Reader(body).text() if fields.get(SIGNATURE, "").startswith("s") else ""
                raise BusError(f"systemd: {member}: {fields.get(ERROR_NAME)}: {reason[:300]}")
            if kind == RETURN:
                return Reader(body, NATIVE)


def _log_in(peer: socket.socket) -> None:
    """Log in by SASL EXTERNAL: the kernel tells the bus our uid. Raises ``OSError``."""
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


MANAGER: Final = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
