"""A supervisor of its own session, which nobody waits for once its VM runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from kvm_launch.talk.tty import leave

READY: Final = b"R"


def detached(launch: Callable[[Callable[[], None]], int]) -> int:
    """Call ``launch`` in a process of its own; give 0 when its VM runs, else its exit code.

    Its output before that is seen here. ``launch`` is given what it has to call then; from there on
    its output goes nowhere, and Ctrl-C here does not reach it.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        return launch(readiness(writer))
    os.close(writer)
    try:
        is_ready = _read(reader) == READY
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        is_ready = False
    if is_ready:
        return 0
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status  # as a shell tells a signal


def readiness(writer: int) -> Callable[[], None]:
    """Return what tells the process at the other end of a pipe that the VM runs, once.

    From there on nobody listens to ours: our output goes nowhere.
    """
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    told: list[bool] = []

    def tell() -> None:
        with suppress(BrokenPipeError):  # the one who waited was killed
            os.write(writer, READY)
        os.close(writer)

    def ready() -> None:
        if not told:
            told.append(True)
            leave(null, tell)

    return ready


def _read(reader: int) -> bytes:
    with os.fdopen(reader, "rb") as file:
        return file.read(1)
