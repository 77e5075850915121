"""Several supervisors, each a process of its own, that one command starts and follows."""

from __future__ import annotations

import os
import re
import selectors
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO, Final, TextIO

from attrs import define, field

from kvm_launch.life.detach import READY, readiness
from kvm_launch.spawn.privileges import PR_SET_PDEATHSIG, prctl
from kvm_launch.talk.tty import guests, outliving
from kvmhooks.errors import QemuError

CHUNK: Final = 1 << 16

LINE_BYTES: Final = 1 << 16
"""A longer line is passed on in pieces."""

ENDS: Final = re.compile(rb"\r+\n?|\n")
"""The characters that end a line, as for a terminal (``kvm_launch.talk.harmless``)."""

TAKEN: Final = b"T"
"""The byte of a supervisor whose VM has its place on the host."""


@define
class _Supervisor:
    name: str
    pid: int
    out: BinaryIO
    """The outlet of its words: room of its own, whatever the others say."""
    heard: bytes = b""
    """Its own words about itself."""
    line: bytearray = field(factory=bytearray)
    """The line that it has begun to print."""

    @property
    def runs_alone(self) -> bool:
        """Nobody waits for it any more: it is detached, and its VM runs."""
        return READY in self.heard


@define
class Supervisors:
    """Those that were started: their output goes on, line by line, with their names.

    With ``is_detached`` each is followed until its VM runs, and then left to itself.
    """

    is_detached: bool
    out: TextIO
    lock: int = -1
    """A lock of the one who starts them: none of them may keep it."""
    _all: list[_Supervisor] = field(factory=list)
    _selector: selectors.DefaultSelector = field(factory=selectors.DefaultSelector)

    def start(
        self, name: str, launch: Callable[[Callable[[], None], Callable[[], None] | None], int]
    ) -> None:
        """Call ``launch`` in a process of its own session.

        It is given what it has to call when its VM has its place, and, if detached, what it has to
        call when its VM runs. One that is not detached ends when we do.
        """
        reader, writer = os.pipe()
        hearing, telling = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            code = QemuError.exit_code
            try:
                os.setsid()
                for descriptor in (1, 2):
                    os.dup2(writer, descriptor)
                for descriptor in (reader, writer, hearing, *self._held()):
                    os.close(descriptor)
                if not self.is_detached:
                    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
                ready = readiness(telling) if self.is_detached else None
                if os.getppid() == parent:
                    with outliving():
                        code = launch(lambda: _tell(telling), ready)
            finally:
                os._exit(code)
        os.close(writer)
        os.close(telling)
        out = guests(self.out, f"[{name}] kvm-launch", is_whole=False)
        supervisor = _Supervisor(name, child, out)
        self._all.append(supervisor)
        self._selector.register(reader, selectors.EVENT_READ, (supervisor, self._pass_on))
        self._selector.register(hearing, selectors.EVENT_READ, (supervisor, self._hear))

    def signal(self, number: int) -> None:
        """Pass a signal on to all that are still followed."""
        for supervisor in self._all:
            if not supervisor.runs_alone:
                os.kill(supervisor.pid, number)

    def follow_to_places(self) -> None:
        """Pass on what they say until each VM has its place, or has ended."""
        while self._selector.get_map() and not all(
            TAKEN in supervisor.heard or not self._is_heard(supervisor) for supervisor in self._all
        ):
            self._once()

    def follow(self) -> int:
        """Pass on what they say until none is followed any more; the worst exit code."""
        while self._selector.get_map():
            self._once()
        codes = [0]
        for supervisor in [supervisor for supervisor in self._all if not supervisor.runs_alone]:
            status = os.waitstatus_to_exitcode(os.waitpid(supervisor.pid, 0)[1])
            self._all.remove(supervisor)
            codes.append(status if status >= 0 else QemuError.exit_code)
        return max(codes)

    def _held(self) -> list[int]:
        """Return the descriptors that are of no use to one that is started."""
        ours = [entry.fd for entry in self._selector.get_map().values()]
        return [*ours, *([self.lock] if self.lock >= 0 else [])]

    def _once(self) -> None:
        for key, _ in self._selector.select():
            supervisor, handle = key.data
            handle(key.fd, supervisor)

    def _is_heard(self, supervisor: _Supervisor) -> bool:
        """Return whether it can still say something of itself."""
        entries = self._selector.get_map().values()
        return any(entry.data == (supervisor, self._hear) for entry in entries)

    def _hear(self, descriptor: int, supervisor: _Supervisor) -> None:
        data = os.read(descriptor, CHUNK)
        supervisor.heard += data
        if not data:
            self._close(descriptor)

    def _pass_on(self, descriptor: int, supervisor: _Supervisor) -> None:
        data = os.read(descriptor, CHUNK)
        if not data:
            self._close(descriptor)
        supervisor.line += data
        if b"\n" in data or b"\r" in data or not data or len(supervisor.line) >= LINE_BYTES:
            self._print(supervisor, is_all=not data)

    def _print(self, supervisor: _Supervisor, *, is_all: bool) -> None:
        """Print the lines that have ended; what is too long for one, or the last, ends here.

        A carriage return ends one too: what a guest says after it has the name before it as well.
        """
        line = bytes(supervisor.line)
        whole = line.rstrip(b"\r")
        *lines, rest = ENDS.split(whole)
        if whole != line and not is_all:
            rest += b"\r"  # perhaps the next is its line feed
        if rest and (is_all or len(rest) >= LINE_BYTES):
            lines, rest = [*lines, rest.rstrip(b"\r")], b""
        supervisor.line = bytearray(rest)
        start = f"[{supervisor.name}] ".encode()
        supervisor.out.write(b"".join(start + line + b"\n" for line in lines))
        supervisor.out.flush()

    def _close(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)
        os.close(descriptor)


def _tell(descriptor: int) -> None:
    """Say that the VM has its place. Nobody may hear it: the command may have been killed."""
    try:
        os.write(descriptor, TAKEN)
    except BrokenPipeError:
        return
