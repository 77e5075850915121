"""QEMU as a process: what it inherits, where it belongs before its first instruction, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Container, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import attrs

from kvm_launch import agent, child, disks, taps, vfio
from kvm_launch.console import Console
from kvm_launch.crew import Crew, keep
from kvm_launch.hold import Hold
from kvm_launch.record import MONITOR
from kvm_launch.user import ids_of, user_of
from kvm_launch.view import writable
from kvmhooks.live import emulator
from kvmhooks.live.closed import settled
from kvmhooks.live.rundir import RunDir, made
from kvmhooks.placement import Plan
from kvmhooks.render import qemu_argv
from kvmhooks.render.handles import FIRST, handles, needs_bridge_helper
from kvmhooks.render.images import with_opened
from kvmhooks.render.sockets import inherited

QMP: Final = "qmp.sock"
"""The monitor that is ours."""

SECOND: Final = "monitor1"
"""QEMU's name for the socket of the monitor that is for others (``record.MONITOR``)."""

QUIT_SECONDS: Final = 5.0


@contextlib.asynccontextmanager
async def started(
    plan: Plan,
    run_dir: RunDir,
    hold: Hold,
    words: deque[str],
    console: Console,
    crew: Crew,
    layers: Mapping[int, Sequence[disks.Layer]],
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.Future[None]]]:
    """QEMU, stopped before its first instruction; ended at the latest when the context is left.

    It is in the VM's control groups before it is QEMU at all (``kvm_launch.child``). It gets
    ``layers``, the images of its disks; a socket that listens already, so that nobody has to wait
    for it to appear; the run directory's lock, so that no other VM of the name starts while it
    lives; and a session of its own, so that the terminal's Ctrl-C reaches us alone. The future is
    done when QEMU has ended and all its output was passed on, or could not be.
    """
    ours, gate = os.pipe()
    with (
        _listening(run_dir.path / QMP) as listener,
        _listening(run_dir.path / MONITOR) as second,
        _agent(plan, run_dir) as of_agent,
        taps.opened(plan, run_dir.path) as files,
        open(ours, "rb") as waiting,  # noqa: ASYNC230, PTH123 -- pipes are not waited for here
        open(gate, "wb", buffering=0) as opening,  # noqa: ASYNC230, PTH123
    ):
        monitors = (listener.fileno(), second.fileno())
        sockets = {**crew.descriptors, **of_agent}
        ends = {fd: number for number, fd in enumerate(sockets.values(), _first(plan))}
        moves = {**files, **ends}
        images, to_open = disks.numbered(layers, _first(plan) + len(ends))
        named = _arguments(plan, {what: moves[fd] for what, fd in sockets.items()})
        process = await asyncio.create_subprocess_exec(
            *_child(plan, ours, moves, to_open, rooms=_rooms(plan, layers)),
            emulator.find(plan.spec),
            *with_opened(named, images),
            "-S",
            *(("-incoming", "defer") if hold.arrives else ()),
            *chain.from_iterable(_monitor(at, fd) for at, fd in enumerate(monitors)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(*monitors, ours, run_dir.lock, *moves),
            start_new_session=True,
        )
        ended = asyncio.ensure_future(_relay(process, words, console))
        console.keyboard = process.stdin
        try:
            hold.adopt(process.pid)
            waiting.close()
            listener.close()
            second.close()
            hold.join(crew.pids)
            await crew.set_out()
            with contextlib.suppress(BrokenPipeError):  # it has ended: its words say why
                opening.write(b"\1")
            opening.close()
            yield process, ended
        finally:
            opening.close()
            try:
                await end(process)
            finally:
                if process.returncode is None:  # a second Ctrl-C: no more patience
                    process.kill()
            await ended


def _child(
    plan: Plan,
    gate: int,
    moves: dict[int, int],
    files: Mapping[int, disks.Layer],
    *,
    rooms: list[str],
) -> list[str]:
    """The words of what becomes QEMU: as whom, with which files, and what it may do and see."""
    return child.command(
        gate,
        gains=needs_bridge_helper(plan),
        ids=ids_of(user_of(plan.spec)),
        moves=moves,
        locked=vfio.locked_memory(plan.spec),
        files=[
            child.file_of(str(each.path), number, each.flags, as_user=not each.is_roots)
            for number, each in files.items()
        ],
        rooms=rooms,
        nodes=_nodes(plan),
    )


def _first(plan: Plan) -> int:
    """The first number that no file of the arguments has (``render.handles``)."""
    return max((handle.number for handle in handles(plan)), default=FIRST - 1) + 1


def _arguments(plan: Plan, sockets: Mapping[str, int]) -> list[str]:
    """QEMU's arguments; it does not change its user itself: the child has done so before."""
    spec = attrs.evolve(plan.spec, machine=attrs.evolve(plan.spec.machine, user=None))
    return inherited(qemu_argv(attrs.evolve(plan, spec=spec)), plan, sockets)[1:]


def _rooms(plan: Plan, opened: Container[int]) -> list[str]:
    """The directories that QEMU may write to; none where that is not for us to say."""
    if os.geteuid() != 0:
        return []
    rooms = writable(plan.spec, opened)
    found = [settled(room) for room in rooms] if user_of(plan.spec) else rooms
    return [
        child.room_of(str(ours or room), as_user=ours is None)
        for room, ours in zip(rooms, found, strict=True)
    ]


def _nodes(plan: Plan) -> list[str]:
    """The files of devices that another user than root has to be given."""
    return [] if user_of(plan.spec) is None else list(map(str, vfio.nodes_of(plan)))


def _listening(path: Path) -> socket.socket:
    """A socket that listens at ``path``. Raises ``LaunchError``."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with made(path):
            listener.bind(str(path))
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _agent(plan: Plan, run_dir: RunDir) -> Iterator[dict[str, int]]:
    """The socket of the guest's agent, where it has one: whoever owns the VM connects to it."""
    if not plan.spec.guest.agent:
        yield {}
        return
    with _listening(run_dir.path / agent.SOCKET) as listener:
        yield {"agent": listener.fileno()}


def _monitor(number: int, descriptor: int) -> tuple[str, ...]:
    """QEMU's arguments for a monitor on a socket that it inherits."""
    return (
        *("-chardev", f"socket,id=monitor{number},fd={descriptor},server=on,wait=off"),
        *("-mon", f"chardev=monitor{number},mode=control"),
    )


async def end(process: asyncio.subprocess.Process) -> None:
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
    await asyncio.gather(_pass_on(process.stdout, console), keep(process.stderr, words))
    await process.wait()


async def _pass_on(stream: asyncio.StreamReader, console: Console) -> None:
    while chunk := await stream.read(1 << 16):
        console.show(chunk)
