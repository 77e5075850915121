"""The guest's console on its way to the terminal, and to whoever is attached to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

from kvm_launch.talk.terminal import typed
from kvmhooks.qemu.guest_report import MARK, MAX_BYTES
from kvmhooks.qemu.run_dir import made

HISTORY_BYTES: Final = 1 << 14
"""The number of bytes from before that one who attaches is shown."""

CLIENTS: Final = 16
"""The number of clients at once; who comes then is told so and let go of."""

BACKLOG_BYTES: Final = 1 << 20
"""One who is attached and does not read is let go of beyond this."""


class Console:
    """Passes on what the guest prints, and keeps the line that is its report.

    With ``is_typed`` what is typed at our own terminal goes to the guest.

    ``show`` takes the bytes as they come; a line longer than a report can be is passed on all the
    same, but not kept.
    """

    def __init__(self, out: BinaryIO, *, is_typed: bool = False) -> None:
        self._out = out
        self._is_typed = is_typed
        self._line = bytearray()
        self._history = bytearray()
        self._attached: set[asyncio.StreamWriter] = set()
        self.keyboard: asyncio.StreamWriter | None = None
        """The stream that takes what is typed by those attached."""
        self.report: bytes | None = None
        """The last line that begins as a report does."""

    def show(self, chunk: bytes) -> None:
        """Pass on what the guest printed."""
        self._out.write(chunk)
        self._out.flush()
        self._history = (self._history + chunk)[-HISTORY_BYTES:]
        for writer in list(self._attached):
            self._send(writer, chunk)
        self._line += chunk
        if b"\n" in chunk:
            *ended, self._line = self._line.split(b"\n")
            for line in ended:
                start = line.find(MARK)
                if start >= 0:
                    self.report = bytes(line[start:]).rstrip(b"\r")
        if len(self._line) > 2 * MAX_BYTES:  # not at every piece of a line that has no end
            del self._line[:-MAX_BYTES]

    @contextlib.asynccontextmanager
    async def served(self, path: Path) -> AsyncIterator[None]:
        """Let others attach at a socket while the context lasts. Raises ``LaunchError``."""
        with made(path):
            server = await asyncio.start_unix_server(self._serve, path)
        try:
            with typed(self._type) if self._is_typed else contextlib.nullcontext():
                yield
        finally:
            server.close()
            for writer in list(self._attached):
                writer.close()

    def _type(self, keys: bytes) -> None:
        """Pass on what is typed at our own terminal; a guest that takes none of it loses it."""
        if self.keyboard is None or self.keyboard.is_closing():
            return
        if self.keyboard.transport.get_write_buffer_size() <= BACKLOG_BYTES:
            self.keyboard.write(keys)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on to the guest what one who is attached types."""
        if len(self._attached) >= CLIENTS:
            writer.write(b"found %d others at this console, expected fewer\r\n" % CLIENTS)
            writer.close()
            return
        self._attached.add(writer)
        self._send(writer, bytes(self._history))
        try:
            while typed := await reader.read(1 << 12):
                if self.keyboard is not None:
                    self.keyboard.write(typed)
                    await self.keyboard.drain()
        except OSError:
            pass  # that one, or QEMU, is gone
        finally:
            self._attached.discard(writer)
            writer.close()

    def _send(self, writer: asyncio.StreamWriter, chunk: bytes) -> None:
        if writer.is_closing():  # it has gone; asyncio would log each further write to stderr
            self._attached.discard(writer)
            return
        writer.write(chunk)
        if writer.transport.get_write_buffer_size() > BACKLOG_BYTES:
            self._attached.discard(writer)
            writer.transport.abort()
