"""A terminal attached to a guest's console: every key goes there, but for the escape."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kvm_launch.talk.socket_names import CONSOLE, missing
from kvmhooks.errors import LaunchError
from kvmhooks.output import NAMES, told

ESCAPE: Final = b"\x1d"
"""Ctrl-], as telnet's and virsh's."""

CHUNK: Final = 1 << 12

WAITING_BYTES: Final = 1 << 16

ANSWER_SECONDS: Final = 10.0


def attach(directory: Path) -> int:
    """Join standard input and output with the console until the VM ends, or the escape.

    Raises ``LaunchError`` for a VM without a console.
    """
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(ANSWER_SECONDS)
        try:
            peer.connect(str(directory / CONSOLE))
        except FileNotFoundError as error:
            raise missing(directory, CONSOLE, 'its console.type is "none"') from error
        except OSError as error:
            why = error.strerror or f"nobody answers within {ANSWER_SECONDS:g} s"
            raise LaunchError(f"{directory.name}: its console: {why}") from error
        peer.setblocking(False)
        is_terminal = os.isatty(sys.stdin.fileno())
        if is_terminal:
            print(f"{directory.name}: Ctrl-] leaves its console", file=sys.stderr)
        with _raw(is_raw=is_terminal):
            _relay(peer, has_escape=is_terminal)
    return 0


def _relay(peer: socket.socket, *, has_escape: bool) -> None:
    """Copy both ways until the other side ends; the end of our input is no end of its output.

    So a script reads on: nobody knows when a guest has printed its last.

    A terminal's keys that the other side does not take in are lost beyond ``WAITING_BYTES``: the
    escape has to be seen. Other input waits instead. Raises ``OutputError``.
    """
    stdin, stdout = sys.stdin.fileno(), sys.stdout.fileno()
    has_input, waiting = True, b""
    while True:
        takes = has_input and (has_escape or not waiting)
        watched: list[int | socket.socket] = [peer, *([stdin] if takes else [])]
        ready, writable, _ = select.select(watched, [peer] if waiting else [], [])
        if peer in ready:
            message = _received(peer)
            if not message:
                return
            _write(stdout, message)
        if stdin in ready:
            typed = os.read(stdin, CHUNK)
            has_input = bool(typed)
            before, escape, _ = typed.partition(ESCAPE) if has_escape else (typed, b"", b"")
            waiting = (waiting + before)[:WAITING_BYTES]
            if escape:
                _sent(peer, waiting)
                return
        if writable or waiting:
            waiting = waiting[_sent(peer, waiting) :]


def _received(peer: socket.socket) -> bytes:
    """Return what came; nothing at the end of the other side, however it ended."""
    try:
        return peer.recv(CHUNK)
    except ConnectionResetError:
        return b""


def _sent(peer: socket.socket, data: bytes) -> int:
    """Return how much of ``data`` the other side takes in now; its end is seen when reading."""
    try:
        return peer.send(data)
    except BlockingIOError:
        return 0
    except (BrokenPipeError, ConnectionResetError):
        return len(data)


@contextmanager
def typed(keyboard: Callable[[bytes], None]) -> Iterator[None]:
    """Hand every key of standard input on while the context lasts, or until the escape.

    It is a terminal. Lines that we print ourselves stay lines: only its input is raw. After the
    escape it is as before, and Ctrl-C means us again.
    """
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    raw = termios.tcgetattr(stdin)
    raw[0] &= ~(termios.ICRNL | termios.IXON)
    raw[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
    termios.tcsetattr(stdin, termios.TCSANOW, raw)  # output may be stopped: it is not waited for

    def leave() -> None:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSANOW, before)

    def read() -> None:
        try:
            keys = os.read(stdin, CHUNK)
        except OSError:  # EIO: the terminal is closed (tty_ioctl(4)), and SIGHUP on its way
            keys = b""
        typed, escape, _ = keys.partition(ESCAPE)
        keyboard(typed)
        if escape:
            leave()
        elif not keys:  # it would be ready for ever
            loop.remove_reader(stdin)

    loop.add_reader(stdin, read)
    try:
        yield
    finally:
        with suppress(termios.error, OSError):  # the terminal may be closed by now
            leave()


def _write(descriptor: int, data: bytes) -> None:
    with told(NAMES["stdout"]):
        while data:
            data = data[os.write(descriptor, data) :]


@contextmanager
def _raw(*, is_raw: bool) -> Iterator[None]:
    """Have the terminal hand on each key as it is, and show none."""
    if not is_raw:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
