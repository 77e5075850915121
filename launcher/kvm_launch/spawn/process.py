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
from typing import TYPE_CHECKING, Final

import attrs

from kvm_launch.prepare import disks, shared_memory, vfio
from kvm_launch.prepare.user import ids_of, user_of
from kvm_launch.spawn import privileges, taps
from kvm_launch.spawn.helper_processes import HelperProcesses, keep
from kvm_launch.spawn.sandbox import writable
from kvm_launch.talk.socket_names import AGENT, OLDER, QMP, QMP_USER, link_older
from kvmhooks.closed import settled
from kvmhooks.qemu import emulator
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.qemu.passed_files import (
    FIRST,
    handles,
    needs_bridge_helper,
    with_shared_memory,
)
from kvmhooks.qemu.passed_images import with_opened
from kvmhooks.qemu.run_dir import RunDir, made
from kvmhooks.qemu.sockets import inherited

if TYPE_CHECKING:
    from kvm_launch.host.lease import Lease
    from kvm_launch.talk.console import Console
    from kvmhooks.placement.model import Plan

QUIT_SECONDS: Final = 5.0


@contextlib.asynccontextmanager
async def started(
    plan: Plan,
    run_dir: RunDir,
    lease: Lease,
    words: deque[str],
    console: Console,
    helper_processes: HelperProcesses,
    layers: Mapping[int, Sequence[disks.Layer]],
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.Future[None]]]:
    """Start QEMU, stopped before its first instruction; it ends at the latest with the context.

    It is in the VM's control groups before it is QEMU at all (``spawn.privileges``). It gets
    ``layers``, the images of its disks; a socket that listens already, so that nobody has to wait
    for it to appear; the run directory's lock, so that no other VM of the name starts while it
    lives; and a session of its own, so that the terminal's Ctrl-C reaches us alone. The future is
    done when QEMU has ended and all its output was passed on, or could not be.
    """
    ours, start_pipe = os.pipe()
    with (
        _listening(run_dir.path / QMP) as listener,
        _listening(run_dir.path / QMP_USER) as second,
        _agent(plan, run_dir) as of_agent,
        taps.opened(plan, run_dir.path) as files,
        shared_memory.opened(plan.spec, user_of(plan.spec)) as shared,
        open(ours, "rb") as waiting,  # noqa: ASYNC230, PTH123 -- pipes are not waited for here
        open(start_pipe, "wb", buffering=0) as opening,  # noqa: ASYNC230, PTH123
    ):
        monitors = (listener.fileno(), second.fileno())
        sockets = {**helper_processes.descriptors, **of_agent}
        ends = {fd: number for number, fd in enumerate([*sockets.values(), *shared], _first(plan))}
        moves = {**files, **ends}
        images, to_open = disks.numbered(layers, _first(plan) + len(ends))
        named = _arguments(plan, {what: moves[fd] for what, fd in sockets.items()})
        for fd in shared:
            named = with_shared_memory(named, moves[fd])
        process = await asyncio.create_subprocess_exec(
            *_child(plan, ours, moves, to_open, writable_dirs=_writable_dirs(plan, layers)),
            emulator.find(plan.spec),
            *with_opened(named, images),
            "-S",
            *(("-incoming", "defer") if lease.is_incoming else ()),
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
            lease.adopt(process.pid)
            waiting.close()
            listener.close()
            second.close()
            lease.join(helper_processes.pids)
            await helper_processes.release()
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
    start_pipe: int,
    moves: dict[int, int],
    files: Mapping[int, disks.Layer],
    *,
    writable_dirs: list[str],
) -> list[str]:
    """Return the words of what becomes QEMU: as whom, with which files, and its limits."""
    return privileges.command(
        start_pipe,
        gains=needs_bridge_helper(plan),
        ids=ids_of(user_of(plan.spec)),
        moves=moves,
        locked=vfio.locked_memory(plan.spec),
        files=[
            privileges.file_of(str(each.path), number, each.flags, as_user=not each.is_roots)
            for number, each in files.items()
        ],
        writable_dirs=writable_dirs,
        device_nodes=_device_nodes(plan),
    )


def _first(plan: Plan) -> int:
    """Return the first number that no file of the arguments has (``qemu.passed_files``)."""
    return max((handle.number for handle in handles(plan)), default=FIRST - 1) + 1


def _arguments(plan: Plan, sockets: Mapping[str, int]) -> list[str]:
    """Return QEMU's arguments; it does not change its user itself: the child has done so before."""
    spec = attrs.evolve(plan.spec, machine=attrs.evolve(plan.spec.machine, user=None))
    return inherited(qemu_argv(attrs.evolve(plan, spec=spec)), plan, sockets)[1:]


def _writable_dirs(plan: Plan, opened: Container[int]) -> list[str]:
    """Return the directories that QEMU may write to; none where that is not for us to say."""
    if os.geteuid() != 0:
        return []
    writable_dirs = writable(plan.spec, opened)
    found = (
        [settled(writable_dir) for writable_dir in writable_dirs]
        if user_of(plan.spec)
        else writable_dirs
    )
    return [
        privileges.writable_dir_of(str(ours or writable_dir), as_user=ours is None)
        for writable_dir, ours in zip(writable_dirs, found, strict=True)
    ]


def _device_nodes(plan: Plan) -> list[str]:
    """Return the files of devices that another user than root has to be given."""
    return [] if user_of(plan.spec) is None else list(map(str, vfio.nodes_of(plan)))


def _listening(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``. Raises ``LaunchError``."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with made(path):
            listener.bind(str(path))
        listener.listen(1)
        if path.name in OLDER:
            link_older(path)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _agent(plan: Plan, run_dir: RunDir) -> Iterator[dict[str, int]]:
    """Give the socket of the guest's agent, where it has one: the VM's owner connects to it."""
    if not plan.spec.guest.agent:
        yield {}
        return
    with _listening(run_dir.path / AGENT) as listener:
        yield {"agent": listener.fileno()}


def _monitor(number: int, descriptor: int) -> tuple[str, ...]:
    """Return QEMU's arguments for a monitor on a socket that it inherits."""
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
