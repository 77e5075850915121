"""The way into a lab: commands, over the agent's connection (see ``guest/agent.py``)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import sys
import termios
import threading
import time
import tty
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import CommandError, LabError, LabTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK = 65536


@dataclass(frozen=True)
class Result:
    """The end of a command."""

    command: str
    stdout: str
    stderr: str
    exit_code: int

    def checked(self) -> Result:
        """Itself, if the command worked."""
        if self.exit_code != 0:
            output = f"{self.stdout[-2000:]}{self.stderr[-2000:]}".strip()
            raise CommandError(f"{self.command}\nexited with {self.exit_code}: {output}")
        return self


class Agent:
    """The agent behind a loopback port."""

    def __init__(self, port: int) -> None:
        """Connects at each command, so making one costs nothing."""
        self.port = port

    def wait(self, seconds: float) -> None:
        """Return once a command runs; QEMU accepts connections long before the agent does."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.run(["true"], seconds=5)
            except (LabError, ConnectionError) as problem:
                if time.monotonic() > end:
                    raise LabTimeoutError(f"no agent in the lab after {seconds:.0f} s") from problem
                time.sleep(0.1)
            else:
                return

    def run(
        self, command: str | Sequence[str], *, stdin: bytes = b"", seconds: float = 60
    ) -> Result:
        """Run a shell text, or a program with its arguments, to its end."""
        argv = ["bash", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else " ".join(argv)
        end = time.monotonic() + seconds
        output = {b"o": bytearray(), b"e": bytearray()}
        with self._connect() as connection:
            sender = threading.Thread(target=_send, args=(connection, argv, stdin), daemon=True)
            sender.start()
            while True:
                try:
                    kind, data = _receive(connection, end)
                except TimeoutError as timeout:
                    tail = (output[b"o"] + output[b"e"]).decode(errors="replace")[-2000:]
                    message = f"{shown}\nstill ran after {seconds:.0f} s; it said: {tail}"
                    raise LabTimeoutError(message) from timeout
                if kind == b"x":
                    break
                output[kind] += data
        texts = [bytes(output[kind]).decode(errors="replace") for kind in (b"o", b"e")]
        return Result(shown, texts[0], texts[1], int(data))

    def interact(self, command: Sequence[str]) -> int:
        """Join this process's terminal with a command; its exit code comes back."""
        columns, rows = shutil.get_terminal_size()
        request = {"argv": list(command), "pty": True, "size": [rows, columns]}
        with self._connect() as connection, _raw_terminal():
            _frame(connection, b"J", json.dumps(request).encode())
            while True:
                ready, _, _ = select.select([connection, sys.stdin], [], [])
                if sys.stdin in ready:
                    _frame(connection, b"i", os.read(sys.stdin.fileno(), CHUNK))
                if connection in ready:
                    kind, data = _receive(connection, time.monotonic() + 60)
                    if kind == b"x":
                        return int(data)
                    os.write(sys.stdout.fileno(), data)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _send(connection: socket.socket, argv: list[str], stdin: bytes) -> None:
    try:
        _frame(connection, b"J", json.dumps({"argv": argv}).encode())
        for start in range(0, len(stdin), CHUNK):
            _frame(connection, b"i", stdin[start : start + CHUNK])
        _frame(connection, b"I", b"")
    except OSError:
        return  # the receiving side sees the same end of the connection, and reports it


def _frame(connection: socket.socket, kind: bytes, data: bytes) -> None:
    connection.sendall(kind + len(data).to_bytes(4, "big") + data)


def _receive(connection: socket.socket, end: float) -> tuple[bytes, bytes]:
    head = _exactly(connection, 5, end)
    return head[:1], _exactly(connection, int.from_bytes(head[1:], "big"), end)


def _exactly(connection: socket.socket, size: int, end: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        connection.settimeout(max(0.001, end - time.monotonic()))
        part = connection.recv(size - len(data))
        if not part:
            raise LabError("the lab's agent hung up")
        data += part
    return bytes(data)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
