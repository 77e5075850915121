"""The helpers of a VM as children of ours: they are there before QEMU is, and gone after it.

Each waits at a gate like QEMU (``kvm_launch.child``) until it is where it belongs. It gets its
socket from us, so nobody has to wait for that to appear, and nobody else can connect to it; QEMU
gets the other end. When we die the kernel ends it; most of them end by themselves when QEMU does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from asyncio.subprocess import Process, SubprocessStreamProtocol
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field

from kvm_launch import child
from kvm_launch.helper import SOCKET, Helper
from kvm_launch.listening import listens
from kvm_launch.user import ids_of
from kvmhooks.errors import QemuError
from kvmhooks.live.rundir import RunDir, made
from kvmhooks.values import CpuSet

READY_SECONDS: Final = 10.0
"""How long a helper may take until it listens at its own socket."""

LEAVE_SECONDS: Final = 1.0
"""How long a helper has to end by itself after QEMU."""

END_SECONDS: Final = 5.0
TAIL_LINES: Final = 10
POLL_SECONDS: Final = 0.02
DRAIN_SECONDS: Final = 0.5
CHUNK: Final = 1 << 16


@define(eq=False)
class Member:
    """One helper that was started."""

    helper: Helper
    process: Process
    transport: asyncio.SubprocessTransport
    gate: int
    words: deque[str] = field(factory=lambda: deque(maxlen=TAIL_LINES))
    ended: asyncio.Future[None] = field(init=False)
    """Done when it has ended and said its last words."""

    def __attrs_post_init__(self) -> None:
        self.ended = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        """Keep what it says until it has ended: a child of its own may hold its output longer."""
        assert self.process.stdout is not None
        reading = asyncio.ensure_future(keep(self.process.stdout, self.words))
        try:
            await _gone(self.process)
            await asyncio.wait((reading,), timeout=DRAIN_SECONDS)
            self.transport.close()  # by itself it waits for the end of the output
        finally:
            reading.cancel()

    def release(self, cpus: CpuSet) -> None:
        """Let it go through its gate, on ``cpus``; it may have ended before.

        It is in its group by now: to join one may reset its affinity (``cpuset_attach()``).
        """
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):
            os.sched_setaffinity(self.process.pid, cpus)
            os.write(self.gate, b"\1")
        self.shut()

    def shut(self) -> None:
        """Close the gate: whoever still waits there ends."""
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1

    def account(self, when: str) -> str:
        """How it ended, with its last words."""
        name, status = self.helper.name, self.process.returncode
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        said = f"{self.helper.at}: {name} ended {when} ({how})"
        return "\n  ".join([said, *self.words])


class Crew:
    """The helpers of one VM."""

    def __init__(self, cpus: CpuSet) -> None:
        self.cpus = cpus
        """Where they run."""
        self.members: list[Member] = []
        self.descriptors: dict[str, int] = {}
        """QEMU's ends of their sockets, by the sockets' names."""
        self.lost = ""
        """Which of them ended before QEMU did."""

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes."""
        return tuple(member.process.pid for member in self.members)

    async def set_out(self, seconds: float = READY_SECONDS) -> None:
        """Let them run, and wait until they can be connected to, for so long.

        Raises ``QemuError`` with the last words of one that cannot.
        """
        for member in self.members:
            member.release(self.cpus)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        for member in self.members:
            path = member.helper.path
            while path is not None and not listens(path):
                if member.ended.done():
                    break
                if loop.time() > until:
                    raise QemuError(
                        f"{member.helper.at}: {member.helper.name} does not listen at {path} after "
                        f"{seconds:g} s"
                    )
                await asyncio.sleep(POLL_SECONDS)
        self.check("before QEMU was started")

    def check(self, when: str) -> None:
        """Raise ``QemuError`` when one of them has ended."""
        for member in self.members:
            if member.ended.done():
                raise QemuError(member.account(when))

    async def mourn(self) -> str:
        """Wait until one of them ends; tell which, and how. Without any it waits for ever."""
        endings = [member.ended for member in self.members]
        if not endings:
            await asyncio.Event().wait()
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        return self.account("while the VM ran")

    async def account_soon(self, when: str) -> str:
        """How one of them failed before a QEMU that did; its own end may be seen a moment later."""
        endings = [member.ended for member in self.members]
        if endings:
            await asyncio.wait(endings, timeout=LEAVE_SECONDS)
        failed = [one for one in self.members if one.ended.done() and one.process.returncode]
        return failed[0].account(when) if failed else ""

    def last_words(self) -> list[str]:
        """What those said that have ended: each line with whose it is."""
        return [
            f"{member.helper.at}: {member.helper.name}: {line}"
            for member in self.members
            if member.ended.done()
            for line in member.words
        ]

    def account(self, when: str) -> str:
        """How the first of them ended that has; empty when none has."""
        return next((one.account(when) for one in self.members if one.ended.done()), "")

    async def end(self) -> None:
        """End them all, now that QEMU has: they are gone when this returns."""
        for member in self.members:
            member.shut()
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}
        await asyncio.gather(*map(_end, self.members))


@contextlib.asynccontextmanager
async def crew_of(helpers: Sequence[Helper], run_dir: RunDir, cpus: CpuSet) -> AsyncIterator[Crew]:
    """The helpers at their gates, on ``cpus``; ended at the latest when the context is left.

    Raises ``QemuError`` when one cannot be started.
    """
    crew = Crew(cpus)
    try:
        for helper in helpers:
            await _start(crew, helper, run_dir)
        yield crew
    finally:
        await crew.end()


async def _start(crew: Crew, helper: Helper, run_dir: RunDir) -> None:
    theirs, ours = _sockets(helper, run_dir.path)
    if ours is not None:
        crew.descriptors[helper.socket] = ours.detach()
    waiting, gate = os.pipe()
    loop = asyncio.get_running_loop()
    inherited = [waiting, run_dir.lock, *([] if theirs is None else [theirs.fileno()])]
    moves = {} if theirs is None else {theirs.fileno(): SOCKET}
    try:
        transport, protocol = await loop.subprocess_exec(
            lambda: SubprocessStreamProtocol(limit=CHUNK, loop=loop),
            *child.command(waiting, gains=False, ids=ids_of(helper.user), moves=moves),
            *helper.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=inherited,
            start_new_session=True,
        )
    except BaseException as error:
        os.close(gate)
        if isinstance(error, OSError):
            raise QemuError(f"{helper.at}: {helper.name}: {error.strerror}") from error
        raise
    finally:
        os.close(waiting)
        if theirs is not None:
            theirs.close()
    crew.members.append(Member(helper, Process(transport, protocol, loop), transport, gate))


def _sockets(helper: Helper, folder: Path) -> tuple[socket.socket | None, socket.socket | None]:
    """The helper's end of its socket, and QEMU's, which is connected already.

    A socket that listens is at a path only until it has been connected to. Raises ``LaunchError``.
    """
    if helper.link == "own":
        return None, None
    if helper.link == "connected":
        return socket.socketpair()
    path = folder / f"{helper.socket}.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        with made(path):
            listener.bind(str(path))
        stack.callback(path.unlink)
        listener.listen(1)
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(path))
        path.unlink()
        stack.pop_all()
    return listener, client


async def _end(member: Member) -> None:
    """Let a helper end, or end it with what it started: a process group of its own."""
    if member.helper.ends_by_itself:
        await asyncio.wait((member.ended,), timeout=LEAVE_SECONDS)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if member.process.returncode is None:  # not reaped yet, so the number is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(member.process.pid, number)
            await asyncio.wait((member.ended,), timeout=END_SECONDS)
    await member.ended


async def _gone(process: Process) -> None:
    """Wait for the end of a process itself."""
    descriptor = os.pidfd_open(process.pid)
    try:
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, gone.set)
        await gone.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
    while process.returncode is None:  # noqa: ASYNC110 -- about to be reaped: nothing tells when
        await asyncio.sleep(POLL_SECONDS)


async def keep(stream: asyncio.StreamReader, words: deque[str]) -> None:
    """Keep the last lines of what a process says, to its end."""
    while chunk := await stream.read(CHUNK):
        words.extend(chunk.decode(errors="replace").splitlines())
