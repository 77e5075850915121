"""QEMU as a child: started stopped, pinned, let run, followed, and ended in any case."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Final

import attrs

from kvm_launch import child
from kvm_launch.console import Console
from kvm_launch.hold import Hold
from kvm_launch.life import State
from kvm_launch.outcome import Ended
from kvm_launch.record import CONSOLE, MONITOR, Account
from kvm_launch.stop import Stop
from kvm_launch.user import user_of
from kvm_launch.watch import Watch
from kvmhooks.errors import QemuError
from kvmhooks.live import threads as live_threads
from kvmhooks.live.qmp import Monitor, connect
from kvmhooks.live.rundir import RunDir
from kvmhooks.placement import Plan
from kvmhooks.render import qemu_argv

ANSWER_SECONDS: Final = 60.0
"""How long QEMU may take until its monitor answers: preallocating huge pages comes before."""

QMP: Final = "qmp.sock"
"""The monitor that is ours."""

QUIT_SECONDS: Final = 5.0
TAIL_LINES: Final = 10


async def supervise(
    plan: Plan,
    *,
    emulator: Path,
    run_dir: RunDir,
    console: Console,
    stop: Stop,
    hold: Hold,
    account: Account,
) -> Ended:
    """Run the VM of ``plan`` to its end, and give account of it.

    Raises ``QemuError`` when QEMU does not start, cannot be pinned, or fails, ``IsolationError``
    when its claim on the host, strict, cannot be met; it is gone then.
    """
    words: deque[str] = deque(maxlen=TAIL_LINES)
    control = run_dir.path / QMP
    life, watch = account.life, Watch(account.life)
    life.enter(State.STARTING)
    async with (
        console.served(run_dir.path / CONSOLE),
        _started(plan, emulator, run_dir, hold, words, console) as (process, ended),
    ):
        try:
            async with connect(control, seconds=ANSWER_SECONDS) as monitor:
                threads = await monitor.threads()
                account.started(process.pid)
                life.enter(State.PAUSED, f"process {process.pid}, before the first instruction")
                hold.isolate(process.pid, threads)
                live_threads.pin(process.pid, plan, threads)
                pins = tuple(live_threads.read_back(process.pid, plan, threads))
                live_threads.require_planned(pins)
                with stop.listening():
                    await monitor.execute("cont")
                    await asyncio.to_thread(hold.follow)
                    forced = await _follow(plan, process, ended, monitor, stop, watch)
        except QemuError as error:
            await _end(process)
            raise _explained(error, process.returncode, words) from error
    if process.returncode and forced is None:
        raise _explained(QemuError(watch.failure), process.returncode, words)
    ending, is_clean = watch.ending(forced)
    return Ended(pins, ending, is_clean, console.report, tuple(words))


@contextlib.asynccontextmanager
async def _started(
    plan: Plan,
    emulator: Path,
    run_dir: RunDir,
    hold: Hold,
    words: deque[str],
    console: Console,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.Future[None]]]:
    """QEMU, stopped before its first instruction; ended at the latest when the context is left.

    It is in the VM's control groups before it is QEMU at all (``kvm_launch.child``). It gets a
    socket that listens already, so that nobody has to wait for it to appear, the run directory's
    lock, so that no other VM of the name starts while it lives, and a session of its own, so that
    the terminal's Ctrl-C reaches us alone. The future is done when QEMU has ended and all its
    output was passed on, or could not be.
    """
    ours, gate = os.pipe()
    with (
        _listening(run_dir.path / QMP) as listener,
        _listening(run_dir.path / MONITOR) as second,
        open(ours, "rb") as waiting,  # noqa: ASYNC230, PTH123 -- pipes are not waited for here
        open(gate, "wb", buffering=0) as opening,  # noqa: ASYNC230, PTH123
    ):
        monitors = (listener.fileno(), second.fileno())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", child.__file__, str(ours), str(os.getpid())),
            *_identity(plan),
            emulator,
            *_arguments(plan),
            "-S",
            *chain.from_iterable(_monitor(at, fd) for at, fd in enumerate(monitors)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(*monitors, ours, run_dir.lock),
            start_new_session=True,
        )
        ended = asyncio.ensure_future(_relay(process, words, console))
        console.keyboard = process.stdin
        try:
            hold.adopt(process.pid)
            waiting.close()
            listener.close()
            second.close()
            with contextlib.suppress(BrokenPipeError):  # it has ended: its words say why
                opening.write(b"\1")
            opening.close()
            yield process, ended
        finally:
            opening.close()
            try:
                await _end(process)
            finally:
                if process.returncode is None:  # a second Ctrl-C: no more patience
                    process.kill()
            await ended


def _arguments(plan: Plan) -> list[str]:
    """QEMU's arguments; it does not change its user itself: the child has done so before."""
    spec = attrs.evolve(plan.spec, machine=attrs.evolve(plan.spec.machine, user=None))
    return qemu_argv(attrs.evolve(plan, spec=spec))[1:]


def _identity(plan: Plan) -> tuple[str, str]:
    """What the child may gain, and whom it becomes."""
    # qemu-bridge-helper is setuid: it makes the port of a bridge for a QEMU that may not.
    needs_helper = any(net.type == "bridge" for net in plan.spec.net)
    user = user_of(plan.spec)
    groups = "" if user is None else ",".join(map(str, user.groups))
    ids = "" if user is None else f"{user.uid}:{user.gid}:{groups}"
    return "keep" if needs_helper else "drop", ids


def _listening(path: Path) -> socket.socket:
    """A socket that listens at ``path``."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def _monitor(number: int, descriptor: int) -> tuple[str, ...]:
    """QEMU's arguments for a monitor on a socket that it inherits."""
    return (
        *("-chardev", f"socket,id=monitor{number},fd={descriptor},server=on,wait=off"),
        *("-mon", f"chardev=monitor{number},mode=control"),
    )


async def _follow(
    plan: Plan,
    process: asyncio.subprocess.Process,
    ended: asyncio.Future[None],
    monitor: Monitor,
    stop: Stop,
    watch: Watch,
) -> str | None:
    """Wait for QEMU's end; None if it came by itself, else why QEMU was told to quit."""

    async def tell(command: str) -> None:
        with contextlib.suppress(QemuError):  # it may just have ended by itself, or hang
            await monitor.execute(command, seconds=QUIT_SECONDS)

    async def ask() -> None:
        watch.asked()
        await tell("system_powerdown")

    async def quit_or_die() -> None:
        await tell("quit")
        await _end(process)

    async def guard() -> None:
        await watch.feel_pulse(monitor, plan.spec.run.hang_timeout)
        process.kill()

    tasks = [asyncio.ensure_future(one) for one in (watch.follow(monitor), guard())]
    try:
        return await stop.escalate(ended, ask=ask, force=quit_or_die)
    finally:
        for task in tasks:
            task.cancel()
        for failed in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(failed, Exception):  # to be cancelled is none
                raise failed
        for event in await monitor.last_events(seconds=QUIT_SECONDS):
            watch.handle(event)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let QEMU end, or end it: it is gone when this returns."""
    for force in (None, process.terminate, process.kill):
        if process.returncode is not None:
            return
        if force is not None:
            with contextlib.suppress(ProcessLookupError):
                force()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), QUIT_SECONDS if force else 0.2)


async def _relay(process: asyncio.subprocess.Process, words: deque[str], console: Console) -> None:
    """Pass on the guest's console and keep QEMU's last words, to the end of both."""
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.gather(_pass_on(process.stdout, console), _keep(process.stderr, words))
    await process.wait()


async def _pass_on(stream: asyncio.StreamReader, console: Console) -> None:
    while chunk := await stream.read(1 << 16):
        console.show(chunk)


async def _keep(stream: asyncio.StreamReader, words: deque[str]) -> None:
    while chunk := await stream.read(1 << 16):
        words.extend(chunk.decode(errors="replace").splitlines())


def _explained(error: QemuError, status: int | None, words: deque[str]) -> QemuError:
    """``error`` with how QEMU ended and its last words."""
    how = "" if status is None else f" (QEMU ended with status {status})"
    return QemuError("\n  ".join([f"{error}{how}", *words]))
