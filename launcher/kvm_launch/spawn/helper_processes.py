"""The helpers of a VM as children of ours: they are there before QEMU is, and gone after it.

Each waits at its start pipe like QEMU (``spawn.privileges``) until it is where it belongs. It
gets its socket from us, so nobody has to wait for that to appear, and nobody else can connect to
it; QEMU gets the other end. When we die the kernel ends it; most of them end by themselves when
QEMU does.
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

from kvm_launch.prepare.helper_spec import SOCKET, Helper
from kvm_launch.prepare.user import ids_of
from kvm_launch.spawn import privileges
from kvm_launch.spawn.listening import listens
from kvmhooks.errors import QemuError
from kvmhooks.qemu.run_dir import RunDir, made
from kvmhooks.values import CpuSet

READY_SECONDS: Final = 10.0
"""The time that a helper may take until it listens at its own socket."""

LEAVE_SECONDS: Final = 1.0
"""The time that a helper has to end by itself after QEMU."""

END_SECONDS: Final = 5.0
TAIL_LINES: Final = 10
POLL_SECONDS: Final = 0.02
DRAIN_SECONDS: Final = 0.5
CHUNK: Final = 1 << 16


@define(eq=False)
class HelperProcess:
    """One helper that was started."""

    helper: Helper
    process: Process
    transport: asyncio.SubprocessTransport
    start_pipe: int
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
        """Let its program start, on ``cpus``; it may have ended before.

        It is in its group by now: to join one may reset its affinity (``cpuset_attach()``).
        """
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):
            os.sched_setaffinity(self.process.pid, cpus)
            os.write(self.start_pipe, b"\1")
        self.shut()

    def shut(self) -> None:
        """Close the start pipe: whoever still waits there ends."""
        if self.start_pipe >= 0:
            os.close(self.start_pipe)
            self.start_pipe = -1

    def exit_message(self, when: str) -> str:
        """Return how it ended, with its last words."""
        name, status = self.helper.name, self.process.returncode
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        message = f"{self.helper.at}: {name} ended {when} ({how})"
        return "\n  ".join([message, *self.words])


class HelperProcesses:
    """The helpers of one VM."""

    def __init__(self, cpus: CpuSet) -> None:
        self.cpus = cpus
        """The CPUs that they run on."""
        self.processes: list[HelperProcess] = []
        self.descriptors: dict[str, int] = {}
        """QEMU's ends of their sockets, by the sockets' names."""
        self.lost = ""
        """The one that ended before QEMU did."""

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes."""
        return tuple(process.process.pid for process in self.processes)

    async def release(self, seconds: float = READY_SECONDS) -> None:
        """Let them run, and wait until they can be connected to, for so long.

        Raises ``QemuError`` with the last words of one that cannot.
        """
        for process in self.processes:
            process.release(self.cpus)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        for process in self.processes:
            path = process.helper.path
            while path is not None and not listens(path):
                if process.ended.done():
                    break
                if loop.time() > until:
                    raise QemuError(
                        f"{process.helper.at}: {process.helper.name} does not listen at {path} "
                        f"after {seconds:g} s"
                    )
                await asyncio.sleep(POLL_SECONDS)
        self.check("before QEMU was started")

    def check(self, when: str) -> None:
        """Raise ``QemuError`` when one of them has ended."""
        for process in self.processes:
            if process.ended.done():
                raise QemuError(process.exit_message(when))

    async def first_exit(self) -> str:
        """Wait until one of them ends; tell which, and how. Without any it waits for ever."""
        endings = [process.ended for process in self.processes]
        if not endings:
            await asyncio.Event().wait()
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        return self.exit_message("while the VM ran")

    async def exit_message_soon(self, when: str) -> str:
        """Return how one of them failed before a QEMU did; its end may be seen a moment later."""
        endings = [process.ended for process in self.processes]
        if endings:
            await asyncio.wait(endings, timeout=LEAVE_SECONDS)
        failed = [
            process
            for process in self.processes
            if process.ended.done() and process.process.returncode
        ]
        return failed[0].exit_message(when) if failed else ""

    def last_words(self) -> list[str]:
        """Return the last words of those that have ended: each line with whose it is."""
        return [
            f"{process.helper.at}: {process.helper.name}: {line}"
            for process in self.processes
            if process.ended.done()
            for line in process.words
        ]

    def exit_message(self, when: str) -> str:
        """Return how the first of them ended that has; empty when none has."""
        return next(
            (process.exit_message(when) for process in self.processes if process.ended.done()), ""
        )

    async def end(self) -> None:
        """End them all, now that QEMU has: they are gone when this returns."""
        for process in self.processes:
            process.shut()
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}
        await asyncio.gather(*map(_end, self.processes))


@contextlib.asynccontextmanager
async def started_helpers(
    helpers: Sequence[Helper], run_dir: RunDir, cpus: CpuSet
) -> AsyncIterator[HelperProcesses]:
    """Start the helpers at their start pipes, on ``cpus``; they end at the latest with the context.

    Raises ``QemuError`` when one cannot be started.
    """
    helper_processes = HelperProcesses(cpus)
    try:
        for helper in helpers:
            await _start(helper_processes, helper, run_dir)
        yield helper_processes
    finally:
        await helper_processes.end()


async def _start(helper_processes: HelperProcesses, helper: Helper, run_dir: RunDir) -> None:
    theirs, ours = _sockets(helper, run_dir.path)
    if ours is not None:
        helper_processes.descriptors[helper.socket] = ours.detach()
    waiting, start_pipe = os.pipe()
    loop = asyncio.get_running_loop()
    inherited = [waiting, run_dir.lock, *([] if theirs is None else [theirs.fileno()])]
    moves = {} if theirs is None else {theirs.fileno(): SOCKET}
    try:
        transport, protocol = await loop.subprocess_exec(
            lambda: SubprocessStreamProtocol(limit=CHUNK, loop=loop),
            *privileges.command(waiting, gains=False, ids=ids_of(helper.user), moves=moves),
            *helper.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=inherited,
            start_new_session=True,
        )
    except BaseException as error:
        os.close(start_pipe)
        if isinstance(error, OSError):
            raise QemuError(f"{helper.at}: {helper.name}: {error.strerror}") from error
        raise
    finally:
        os.close(waiting)
        if theirs is not None:
            theirs.close()
    helper_processes.processes.append(
        HelperProcess(helper, Process(transport, protocol, loop), transport, start_pipe)
    )


def _sockets(helper: Helper, folder: Path) -> tuple[socket.socket | None, socket.socket | None]:
    """Return the helper's end of its socket, and QEMU's, which is connected already.

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


async def _end(process: HelperProcess) -> None:
    """Let a helper end, or end it with what it started: a process group of its own."""
    if process.helper.ends_by_itself:
        await asyncio.wait((process.ended,), timeout=LEAVE_SECONDS)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.process.returncode is None:  # not reaped yet, so the number is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.process.pid, number)
            await asyncio.wait((process.ended,), timeout=END_SECONDS)
    await process.ended


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
