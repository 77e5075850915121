"""Standard output and standard error of one who goes on whatever becomes of their readers.

Every write to a terminal that was closed fails (EIO, ``tty_write()`` in drivers/tty/tty_io.c), one
to a pipe that nobody reads waits, one to a full disk fails: the VM outlives all of them.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

from kvm_launch.talk.harmless import Harmless
from kvm_launch.talk.outlet import Channel, Outlet
from kvmhooks.output import NAMES, Plain, fill
from kvmhooks.signals import noted

DRAIN_SECONDS: Final = 3.0
"""The time for which a process waits at its end for a reader that is slow."""

LAST_SECONDS: Final = 0.5
"""The time for which it then waits for who reads of what was lost."""

GUEST_BYTES: Final = 1 << 20
"""The bytes of a guest's console that wait at the most for who reads it."""


@contextmanager
def outliving() -> Iterator[None]:
    """Have standard output and standard error wait for nobody while the context lasts.

    At its end what is still to be written is waited for, within bounds, or until a signal comes.
    """
    fill()
    before = sys.stdout, sys.stderr
    outlets: dict[tuple[int, int], Outlet] = {}
    channels: list[tuple[str, Channel]] = []
    for name, what in NAMES.items():
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            status = os.fstat(stream.fileno())
            outlet = outlets.setdefault((status.st_dev, status.st_ino), Outlet())
            channel = Channel(outlet, stream.fileno())
            channels.append((what, channel))
            setattr(sys, name, _over(channel, what, stream.encoding))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _drain(channels)
        sys.stdout, sys.stderr = before


def is_written(stream: TextIO) -> bool:
    """Return whether all that was printed to ``stream`` is written, now or within bounds."""
    stream.flush()
    channel: Any = getattr(stream, "buffer", None)
    if not isinstance(channel, Channel):
        return True
    with noted() as came:
        channel.outlet.drained(time.monotonic() + DRAIN_SECONDS, came)
    return not (channel.waiting or channel.lost)


def leave(null: int, then: Callable[[], None]) -> None:
    """Have our output go to ``null`` once what was said is written, and call ``then``.

    Nobody waits for that: it is done in a thread.
    """
    outlets: list[Outlet] = []
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        buffer: Any = stream.buffer
        if isinstance(buffer, Channel):
            buffer.outlet.silence()
            outlets.append(buffer.outlet)

    def turn() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        until = time.monotonic() + DRAIN_SECONDS
        for outlet in outlets:
            outlet.drained(until)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(null, stream.fileno())
        then()

    threading.Thread(target=turn, daemon=True).start()


def guests(out: TextIO, name: str, *, is_whole: bool) -> Any:
    """Give the binary stream to which a guest's console goes.

    A terminal obeys nothing that comes from there, unless ``is_whole``: it was asked for.
    """
    buffer: Any = out.buffer
    if isinstance(buffer, Channel):
        buffer = buffer.beside(name=name, limit=GUEST_BYTES)
    return Harmless(buffer) if out.isatty() and not is_whole else buffer


def _over(channel: Channel, what: str, encoding: str) -> Plain:
    return Plain(channel, what, encoding=encoding, by_line=True)


def _drain(channels: Sequence[tuple[str, Channel]]) -> None:
    """Wait for what is still to be written; what is lost of one stream is told on the other."""
    until = time.monotonic() + DRAIN_SECONDS
    with noted() as came:
        outlets = dict.fromkeys(channel.outlet for _, channel in channels)
        is_read = {outlet: outlet.drained(until, came) for outlet in outlets}
        for what, channel in channels:
            count, why = channel.outlet.missing()
            for _, other in channels if count else ():
                if other.outlet is not channel.outlet and is_read[other.outlet]:
                    message = f"kvm-launch: {what}: {count} bytes are not written: {why}\n"
                    other.write(message.encode())
                    other.outlet.drained(time.monotonic() + LAST_SECONDS, came)
