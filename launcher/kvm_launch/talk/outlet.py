"""Output that is waited for by nobody: a bounded queue, and a thread that writes it out.

A write may fail (a full disk, a reader that is gone), and it may take for ever (a reader that does
not read, a terminal after Ctrl-S). Neither may end a VM, or keep its supervisor from a signal, from
QEMU's end or from giving the host back. ``O_NONBLOCK`` is no way out: it belongs to the open file
(``open(2)``), which others share with us.

A piece that finds no room is dropped and counted, and their size is told once somebody reads again.
"""

from __future__ import annotations

import io
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakSet

from attrs import define

LIMIT: Final = 1 << 22
"""Bytes of ours that wait at the most: no plan and no outcome is that long."""

PIECE: Final = 1 << 16
"""Bytes that are written at once: what a pipe holds (pipe(7))."""

FORK_SECONDS: Final = 0.05
"""The time for which a fork waits for a write that is under way."""

POLL_SECONDS: Final = 0.02

UNREAD: Final = "nobody took them"


@define(eq=False)
class _Piece:
    """Something to write, and what was lost before it."""

    channel: Channel
    data: bytes
    lost: int = 0
    why: str = ""

    def bytes(self) -> bytes:
        if not self.lost:
            return self.data
        return self.channel.notice(self.lost, self.why).encode() + self.data


class Outlet:
    """Writes what its channels are given, in the order in which it came."""

    def __init__(self) -> None:
        self._channels: list[Channel] = []
        self._begin()
        _outlets.add(self)

    def _begin(self) -> None:
        self._queue: deque[_Piece] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_resting = False
        self._is_silent = False
        for channel in self._channels:
            channel.waiting = channel.lost = 0

    def add(self, channel: Channel) -> None:
        """Have one more source."""
        with self._changed:
            self._channels.append(channel)

    def put(self, channel: Channel, data: bytes) -> None:
        """Take ``data``, or drop it where its channel has no room; a piece alone always has."""
        with self._changed:
            if self._is_silent:
                return
            if channel.waiting and channel.waiting + len(data) > channel.limit:
                channel.lose(len(data), UNREAD)
                return
            self._append(channel, data)
            self._start()
            self._changed.notify_all()

    def drained(self, until: float, given_up: Sequence[object] = ()) -> bool:
        """Wait until all is written; False when it is not ``until`` then (monotonic seconds).

        Nor is it waited for once there is something in ``given_up``.
        """
        with self._changed:
            while self._queue or self._untold():
                self._start()
                if given_up or time.monotonic() >= until:
                    return False
                self._changed.wait(POLL_SECONDS)
        return True

    def missing(self) -> tuple[int, str]:
        """Return how many bytes are not written, and why."""
        with self._changed:
            count = sum(channel.waiting + channel.lost for channel in self._channels)
            return count, next((channel.why for channel in self._channels if channel.lost), UNREAD)

    def silence(self) -> None:
        """Take nothing more."""
        with self._changed:
            self._is_silent = True

    def rest(self) -> None:
        """Let a fork find all written and no thread here, unless a write does not end."""
        self.drained(time.monotonic() + FORK_SECONDS)
        with self._changed:
            thread, self._is_resting = self._thread, True
            self._changed.notify_all()
        if thread is not None:
            thread.join(FORK_SECONDS)

    def go_on(self) -> None:
        """Go on: the fork is done."""
        with self._changed:
            self._is_resting = False
            if self._queue:
                self._start()

    def forget(self) -> None:
        """Be new in a process that was forked: what waits is the parent's to write."""
        self._begin()

    def _append(self, channel: Channel, data: bytes) -> None:
        self._queue.append(_Piece(channel, data, channel.lost, channel.why))
        channel.waiting += len(data)
        channel.lost = 0

    def _start(self) -> None:
        """Have a thread; one whose start is interrupted ends again, and the next is another."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, daemon=True)
            thread.start()
            self._thread = thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread's
        while pieces := self._next():
            channel = pieces[0].channel
            text = b"".join(piece.bytes() for piece in pieces)
            why = _write(channel.fileno(), text)
            with self._changed:
                for piece in pieces:
                    self._queue.popleft()
                    channel.waiting -= len(piece.data)
                    if why:
                        channel.lose(piece.lost + len(piece.data), why)
                self._changed.notify_all()

    def _next(self) -> list[_Piece]:
        """Wait for what is to be written next; nothing when the thread is to end."""
        me = threading.current_thread()
        with self._changed:
            while self._thread is me and not self._is_resting:
                if self._queue:
                    return self._together()
                for channel in self._untold():
                    self._append(channel, b"")
                if not self._queue:
                    self._changed.wait()
            if self._thread is me:
                self._thread = None
            return []

    def _untold(self) -> list[Channel]:
        """Return those of whose loss a reader can be told: what failed would only fail again."""
        return [channel for channel in self._channels if channel.lost and channel.why == UNREAD]

    def _together(self) -> list[_Piece]:
        """Return the first pieces, as far as they are of one channel and can be written at once."""
        pieces: list[_Piece] = []
        size = 0
        for piece in self._queue:
            size += len(piece.data)
            if pieces and (piece.channel is not pieces[0].channel or size > PIECE):
                break
            pieces.append(piece)
        return pieces


class Channel(io.RawIOBase):
    """One source of what an outlet writes to ``descriptor``, with room of its own."""

    def __init__(
        self, outlet: Outlet, descriptor: int, *, name: str = "kvm-launch", limit: int = LIMIT
    ) -> None:
        super().__init__()
        self._outlet = outlet
        self._descriptor = descriptor
        self._name = name
        self.limit: Final = limit
        self.waiting = 0
        """Bytes that are to be written."""
        self.lost = 0
        """Bytes that were not, and of which it has not been told yet."""
        self.why = ""
        outlet.add(self)

    def beside(self, *, name: str, limit: int) -> Channel:
        """Make another one to the same place."""
        return Channel(self._outlet, self._descriptor, name=name, limit=limit)

    def write(self, data: Any) -> int:  # a Buffer, which Python 3.11 has no name for
        """Take all of it, or nothing."""
        taken = bytes(data)
        if taken:
            self._outlet.put(self, taken)
        return len(taken)

    def lose(self, count: int, why: str) -> None:
        """Count bytes that are not written."""
        self.lost += count
        self.why = why

    def notice(self, lost: int, why: str) -> str:
        """Say that some were not."""
        return f"\n{self._name}: {lost} bytes of output are missing: {why}\n"

    @property
    def outlet(self) -> Outlet:
        """The outlet that it goes to."""
        return self._outlet

    def fileno(self) -> int:
        """Return the descriptor that is written to in the end."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether that is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return true: it always is."""
        return True


def _write(descriptor: int, data: bytes) -> str:
    """Write all of it, however long that takes; give why that failed, or nothing."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest[:PIECE]) :]
        except BlockingIOError:  # somebody else's O_NONBLOCK
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
        except OSError as error:
            return error.strerror or type(error).__name__
    return ""


_outlets: Final[WeakSet[Outlet]] = WeakSet()


def _each(name: str) -> None:
    for outlet in list(_outlets):
        getattr(outlet, name)()


os.register_at_fork(
    before=lambda: _each("rest"),
    after_in_parent=lambda: _each("go_on"),
    after_in_child=lambda: _each("forget"),
)
