"""Output to a terminal that may be closed while the VM runs.

Every write to it fails then (EIO, ``tty_write()`` in drivers/tty/tty_io.c), maybe before SIGHUP has
been handled. That is no failure of ours: the guest is asked to power off, and what is said of that
is said to nobody.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class Terminal(io.FileIO):
    """A terminal, and nothing once it is gone."""

    def write(self, data: Any) -> int:  # a Buffer, which Python 3.11 has no name for
        """Write to it. Raises ``OSError`` for any other failure than that it is gone."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        return memoryview(data).nbytes


def outlive_terminals() -> None:
    """Have standard output and standard error go on without the terminals that they are on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            stream.flush()
            raw = Terminal(stream.fileno(), "w", closefd=False)
            outliving = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=True,
            )
            setattr(sys, name, outliving)
