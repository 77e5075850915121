"""The guest's console on its way to the terminal, and the report that may be in it."""

from __future__ import annotations

from typing import BinaryIO

from kvmhooks.live.report import MARK, MAX_BYTES


class Console:
    """Passes on what the guest prints, and keeps the line that is its report.

    ``show`` takes the bytes as they come; a line longer than a report can be is passed on all the
    same, but not kept.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._line = bytearray()
        self.report: bytes | None = None
        """The last line that begins as a report does."""

    def show(self, chunk: bytes) -> None:
        """Pass on what the guest printed."""
        self._out.write(chunk)
        self._out.flush()
        *ended, rest = (bytes(self._line) + chunk).split(b"\n")
        for line in ended:
            start = line.find(MARK)
            if start >= 0:
                self.report = line[start:].rstrip(b"\r")
        self._line = bytearray(rest[-MAX_BYTES:])
