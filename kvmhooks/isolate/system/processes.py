"""Processes of ours beside this one: a program that goes on by itself, a step that may not return.

libvirt waits for the last descriptor of its hook's pipes to be closed, and a lock (``flock(2)``) is
held as long as any copy of its descriptor: a child keeps neither.
"""

from __future__ import annotations

import errno
import os
import select
import signal

from kvmhooks.errors import IsolationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_HIGHEST: Final = 1 << 16
_GRACE: Final = 0.2
"""Seconds for a killed child to end: one that sleeps without heeding signals does not."""
_UNKNOWN: Final = 255
_MOST: Final = 1 << 20


class StuckError(IsolationError):
    """A step did not end in time, and the kernel has not let go of the process that takes it."""

    def __init__(self, pid: int, seconds: float) -> None:
        super().__init__(f"no answer within {seconds:.0f} s; process {pid} still waits")
        self.pid = pid


def detach(words: list[str], tell: Callable[[str], None]) -> None:
    """Run a program that is nobody's child and has nothing of ours; it is not waited for.

    Where it cannot be run ``tell`` is told why, in a process that then ends.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _leave_everything()
        os.execve(words[0], words, {})  # noqa: S606 -- no shell on purpose
    except OSError as error:
        tell(f"{words[0]}: {error.strerror}")
    finally:
        os._exit(127)


def within(
    seconds: float,
    action: Callable[[], object],
    number: int = signal.SIGKILL,
    printed: int | None = None,
) -> None:
    """Take a step in a child, and wait for it no longer than this.

    A driver that hangs in a write to sysfs sleeps without heeding signals, and the writer with it;
    nothing else can be done than to go on without it. ``number`` is the signal that breaks off a
    process that heeds one; ``printed`` takes what is printed.

    Raises ``OSError`` as the step does, with ``ETIMEDOUT`` if it could be broken off in time, and
    ``StuckError`` where it goes on.
    """
    child = os.fork()
    if child == 0:
        code = _UNKNOWN
        try:
            os.setsid()
            _leave_everything(printed)
            action()
            code = 0
        except OSError as error:
            code = error.errno or _UNKNOWN
        finally:
            os._exit(code)
    descriptor = os.pidfd_open(child)
    try:
        if not _ends(descriptor, seconds):
            os.kill(child, number)
            if not _ends(descriptor, _GRACE):
                raise StuckError(child, seconds)
    finally:
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise OSError(errno.ETIMEDOUT, f"no answer within {seconds:g} s")
    if code:
        raise OSError(code, os.strerror(code))


def run(words: list[str], seconds: float) -> None:
    """Run a program, and wait for it no longer than this; its outcome is not told."""
    try:
        within(seconds, lambda: os.execve(words[0], words, {}))  # noqa: S606 -- as above
    except (OSError, StuckError):  # whoever needs what it does looks for that
        return


def output(words: list[str], seconds: float) -> str:
    """Return the output of a program, if it ends well and in time.

    Raises ``IsolationError`` with its last line if it does not.
    """
    printed = os.memfd_create("output", os.MFD_CLOEXEC)
    try:
        within(seconds, lambda: os.execve(words[0], words, {}), printed=printed)  # noqa: S606 -- as above
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:  # its last line is no reason
            raise IsolationError(f"{words[0]}: {error.strerror}") from error
        lines = _text_of(printed).splitlines() or [f"{words[0]}: {error.strerror}"]
        raise IsolationError(lines[-1]) from error
    else:
        return _text_of(printed)
    finally:
        os.close(printed)


def _text_of(descriptor: int) -> str:
    return os.pread(descriptor, _MOST, 0).decode("utf-8", "replace")


def _ends(descriptor: int, seconds: float) -> bool:
    """Return whether a process ends in time (pidfd_open(2): its descriptor is then readable)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(seconds, 0) * 1000))  # below 0 it would wait for ever


def _leave_everything(printed: int | None = None) -> None:
    """Keep no descriptor and no directory of the parent's, but one for what is printed."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null if printed is None or descriptor == 0 else printed, descriptor)
    os.closerange(3, _HIGHEST)
