"""QEMU as a child: started stopped, pinned, let run, followed, and ended in any case."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from kvm_launch.host.lease import Lease
from kvm_launch.life.migration import Receiver, Sender
from kvm_launch.life.preload import preload
from kvm_launch.life.stop import Stop
from kvm_launch.prepare import disks
from kvm_launch.prepare.helper_programs import helpers_here
from kvm_launch.prepare.user import user_of
from kvm_launch.spawn.helper_processes import TAIL_LINES, HelperProcesses, started_helpers
from kvm_launch.spawn.process import QUIT_SECONDS, end, started
from kvm_launch.talk import agent, control
from kvm_launch.talk.console import Console
from kvm_launch.talk.events import Watch
from kvm_launch.talk.live_changes import RunningVm
from kvm_launch.talk.socket_names import AGENT, CONSOLE, QMP
from kvm_launch.tell.outcome import Ended
from kvm_launch.tell.states import VmState
from kvm_launch.tell.status import StatusReporter
from kvmhooks.errors import KvmhooksError, QemuError, words_of
from kvmhooks.placement.model import Plan
from kvmhooks.qemu import threads as live_threads
from kvmhooks.qemu.qmp import Monitor, connect
from kvmhooks.qemu.run_dir import RunDir

ANSWER_SECONDS: Final = 60.0
"""The time until QEMU's monitor has to answer: preallocating huge pages comes before."""

GRACE_SECONDS: Final = 1.0

_POLL_SECONDS: Final = 0.1


async def supervise(
    plan: Plan,
    *,
    receiver: Receiver | None,
    run_dir: RunDir,
    console: Console,
    stop: Stop,
    lease: Lease,
    reporter: StatusReporter,
) -> Ended:
    """Run the VM of ``plan`` to its end, beside its helpers, and report on it.

    With a ``receiver`` its guest comes from another QEMU instead of booting.

    Raises ``QemuError`` when QEMU or a helper does not start, or QEMU cannot be pinned or fails,
    ``IsolationError`` when its claim on the host, strict, cannot be met; all is gone then.
    """
    words: deque[str] = deque(maxlen=TAIL_LINES)
    life, watch = reporter.life, Watch(reporter.life)
    user = user_of(plan.spec)
    helpers = helpers_here(plan.spec, user)
    for helper in helpers:
        if helper.left_out:
            reporter.warn(f"{helper.at}: {helper.left_out}")
    layers, left = disks.layers_of(plan.spec, user)
    for disk in left:
        reporter.warn(f"{disk.at}: QEMU opens it itself: {disk.why}")
    life.enter(VmState.STARTING)
    async with (
        _joined(console, plan, run_dir),
        started_helpers(helpers, run_dir, plan.emulator) as helper_processes,
        started(plan, run_dir, lease, words, console, helper_processes, layers) as (process, ended),
    ):
        try:
            await asyncio.to_thread(preload)  # QEMU needs as long until it answers
            async with connect(run_dir.path / QMP, seconds=ANSWER_SECONDS) as monitor:
                threads = await monitor.threads()
                reporter.started(process.pid)
                life.enter(VmState.PAUSED, f"process {process.pid}, before the first instruction")
                lease.isolate(process.pid, threads)
                live_threads.pin(process.pid, plan, threads)
                live_threads.schedule(process.pid, plan, threads)
                pins = tuple(live_threads.read_back(process.pid, plan, threads))
                live_threads.require_planned(pins)
                running = RunningVm(plan, process.pid, monitor, lease, reporter)
                leave = partial(_leave, watch, stop)
                sender = Sender(plan, monitor, run_dir, reporter, leave, process.pid, stop)
                handlers = {**running.handlers, **sender.handlers}
                with control.listening(run_dir.path) as listener:
                    reason = (
                        await receiver.receive(monitor, run_dir, process.pid) if receiver else ""
                    )
                    with stop.listening():  # a signal before has ended us; the guest is elsewhere
                        if receiver is not None:
                            await receiver.take_over()
                            life.report(reason)
                        await monitor.execute("cont")
                        await asyncio.to_thread(lease.follow)
                        async with (
                            control.served(listener, handlers),
                            _named(receiver, run_dir, reporter) as named,
                            _awaited(plan, run_dir, reporter, named),
                        ):
                            forced = await _follow(
                                plan, process, ended, monitor, stop, watch, helper_processes, sender
                            )
        except QemuError as error:
            await end(process)
            if lost := await helper_processes.exit_message_soon("as QEMU was started"):
                raise QemuError(lost) from error
            raise _explained(
                error, process.returncode, [*words, *helper_processes.last_words()]
            ) from error
    if helper_processes.lost:
        return Ended(
            pins, f"QEMU ended: {helper_processes.lost}", False, console.report, tuple(words)
        )
    if process.returncode and forced is None:
        raise _explained(QemuError(watch.failure), process.returncode, words)
    ending, is_clean = watch.ending(forced)
    return Ended(pins, ending, is_clean, console.report, tuple(words))


def _joined(
    console: Console, plan: Plan, run_dir: RunDir
) -> contextlib.AbstractAsyncContextManager[None]:
    """Let others join the guest's console, where it has one."""
    if plan.spec.console.type == "none":
        return contextlib.nullcontext()
    return console.served(run_dir.path / CONSOLE)


def _leave(watch: Watch, stop: Stop) -> None:
    """Leave the VM: the guest is in another QEMU, and this end is none to start again after."""
    watch.has_migrated = True
    stop.was_asked = True


@contextlib.asynccontextmanager
async def _named(
    receiver: Receiver | None, run_dir: RunDir, reporter: StatusReporter
) -> AsyncIterator[asyncio.Event]:
    """Take the VM's name once the QEMU from which the guest came is gone, and its host restored.

    Nobody waits for that: the guest runs already. The event tells that the name is taken.
    """
    named = asyncio.Event()
    if receiver is None:
        named.set()
        yield named
        return
    naming = asyncio.ensure_future(_take_name(receiver.name, run_dir, reporter, named))
    try:
        yield named
    finally:
        naming.cancel()
        await asyncio.gather(naming, return_exceptions=True)


async def _take_name(
    name: str, run_dir: RunDir, reporter: StatusReporter, named: asyncio.Event
) -> None:
    try:
        while not run_dir.take_name(name):  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(_POLL_SECONDS)
        reporter.renamed()
    except (KvmhooksError, OSError) as error:
        reporter.warn(f"the VM stays {run_dir.path.name!r}: {words_of(error)}")
    named.set()


@contextlib.asynccontextmanager
async def _awaited(
    plan: Plan, run_dir: RunDir, reporter: StatusReporter, named: asyncio.Event
) -> AsyncIterator[None]:
    """Tell when the guest's agent answers, where that is waited for."""
    if plan.spec.run.ready != "agent":
        yield
        return

    async def answered() -> None:
        await named.wait()  # its socket is in the run directory
        await agent.answered(run_dir.path / AGENT)

    waiting = asyncio.ensure_future(answered())

    def tell(done: asyncio.Task[None]) -> None:
        if done.cancelled():
            return
        if error := done.exception():
            reporter.warn(f"the guest's agent is not waited for any more: {error!r}")
        else:
            reporter.up()

    waiting.add_done_callback(tell)
    try:
        yield
    finally:
        waiting.cancel()


async def _follow(  # noqa: PLR0913, PLR0917 -- all of what a VM has while it runs
    plan: Plan,
    process: asyncio.subprocess.Process,
    ended: asyncio.Future[None],
    monitor: Monitor,
    stop: Stop,
    watch: Watch,
    helper_processes: HelperProcesses,
    sender: Sender,
) -> str | None:
    """Wait for QEMU's end; None if it came by itself, else why QEMU was told to quit."""

    async def tell(command: str) -> None:
        with contextlib.suppress(QemuError):  # it may just have ended by itself, or hang
            await monitor.execute(command, seconds=QUIT_SECONDS)

    async def ask() -> None:
        watch.asked()
        await tell("system_powerdown")

    async def quit_or_die() -> None:
        await sender.decided()
        await tell("quit")
        await end(process)

    async def guard() -> None:
        await watch.feel_pulse(monitor, plan.spec.run.hang_timeout)
        process.kill()

    beside = (
        watch.follow(monitor),
        guard(),
        _end_after_helper(helper_processes, ended, watch, quit_or_die),
    )
    tasks = [asyncio.ensure_future(coroutine) for coroutine in beside]
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
        watch.missed(monitor.dropped_events)


async def _end_after_helper(
    helper_processes: HelperProcesses,
    ended: asyncio.Future[None],
    watch: Watch,
    force: Callable[[], Awaitable[None]],
) -> None:
    """Have QEMU quit when a helper has ended before it: the guest's device is dead.

    They end with QEMU, some a moment before its own end is seen.
    """
    reason = await helper_processes.first_exit()
    await asyncio.wait((ended,), timeout=GRACE_SECONDS)
    if not ended.done() and watch.reason == "unknown":
        helper_processes.lost = reason
        await force()


def _explained(error: QemuError, status: int | None, words: Iterable[str]) -> QemuError:
    """Return ``error`` with how QEMU ended and its last words."""
    how = "" if status is None else f" (QEMU ended with status {status})"
    return QemuError("\n  ".join([f"{error}{how}", *words]))
