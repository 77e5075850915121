"""A VM goes from one kvm-launch to another on this host, and its guest runs on.

The new one asks the old one's supervisor for everything (``kvm_launch.talk.control``): what its
guest sees, which has to be the same here; then for the guest itself, over a socket of the new one's
run directory, which each gives to its QEMU as a descriptor (``migrate fd:…``, qapi/migration.json).
At last the guest stands still in both. Only the new one's ``leave`` lets the old one go, and only
after that is answered the new one lets the guest run: so it never runs twice. If the new one ends
before that, or is not heard of again, it runs on in the old one; if the old one ends, in the new.

The new QEMU is made for the guest as it is by then: with as many vCPUs, and refused where something
else was plugged, taken out or put into a drive by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kvm_launch.life.guest_view import check_same, guest_view, obstacles, vcpus_in, with_vcpus
from kvm_launch.life.stop import Stop
from kvm_launch.talk.control import Handler, ask, asked
from kvm_launch.talk.plugged import machine
from kvm_launch.talk.socket_names import INCOMING
from kvm_launch.talk.vcpus import CRASH, slots_of, survives_unplug, there, version_of
from kvm_launch.tell.status import StatusReporter, find
from kvmhooks.errors import LaunchError, QemuError, SpecError, UsageError
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.qmp import Monitor
from kvmhooks.qemu.run_dir import RunDir, is_free
from kvmhooks.qemu.unix import connected
from kvmhooks.values import CpuSet

SUFFIXES: Final = {True: "~", False: "~~"}
"""Of the run directory of a VM that arrives, as a second instance or not; no VM's name has it.

They take turns: a QEMU that ends removes its sockets by the names that they were made with
(``qio_channel_socket_close()``, io/channel-socket.c), and the next one's must not be there.
"""

DESCRIPTOR: Final = "migration"
"""The name that both QEMUs have for it."""

BYTES_A_SECOND: Final = 1 << 36
"""There is no network in between: as fast as memory is copied."""

MOST_SECONDS: Final = 600.0
"""The time for the guest's memory: one that writes faster than it is copied never arrives."""

PATIENCE_SECONDS: Final = 30.0
"""The time for which a guest stands still in a QEMU that nobody has told to leave."""

LEAVE_SECONDS: Final = 120.0
"""The time for which the old supervisor may say nothing before the guest is left to it."""

ASK_SECONDS: Final = 10.0
"""The time that it may take to tell what the guest sees."""

POLL_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 1.0

_FAILED: Final = frozenset({"failed", "cancelled"})
_UNDER_WAY: Final = frozenset({"setup", "active", "device", "pre-switchover", "cancelling"})
"""``MigrationStatus`` (qapi/migration.json)."""

_STATUS: Final = {"running": bool, "status": str}
_MIGRATION: Final = {"*status": str}


class Sender:
    """The side on which the guest is."""

    def __init__(
        self,
        plan: Plan,
        monitor: Monitor,
        run_dir: RunDir,
        reporter: StatusReporter,
        leave: Callable[[], None],
        pid: int,
        stop: Stop,
    ) -> None:
        self._plan = plan
        self._monitor = monitor
        self._run_dir = run_dir
        self._reporter = reporter
        self._leave = leave
        self._stop = stop
        self._pid = pid
        """QEMU's."""
        self._is_between = False
        """The guest stands still here, and may be let run in the other QEMU."""
        self._is_going = False
        """Its memory is on its way."""
        self._after: asyncio.Task[None] | None = None

    @property
    def handlers(self) -> dict[str, Handler]:
        """The requests that it answers, by verb."""
        return {"describe": self.describe, "migrate": self.migrate, "leave": self.leave}

    async def describe(self, _request: Mapping[str, Any]) -> list[str]:
        """Return what the guest sees. Raises ``KvmhooksError`` when it cannot go."""
        found = tuple(obstacles(self._plan.spec))
        if found:
            raise SpecError(self._plan.spec.source, found)
        present = there(await slots_of(self._monitor))
        if present != CpuSet(range(len(present))):
            raise QemuError(f"found vCPUs {present}, expected the first ones of the VM's")
        began = self._plan.spec.cpu.current or len(self._plan.vcpus)
        version = await version_of(self._monitor)
        if len(present) < began and not survives_unplug(self._plan.accel, version):
            raise QemuError(f"found {began - len(present)} vCPUs unplugged: {CRASH}")
        return guest_view(with_vcpus(self._plan, len(present)))

    async def migrate(self, request: Mapping[str, Any]) -> list[str]:
        """Send the guest to the one who arrives; it stands still then.

        Raises ``KvmhooksError`` when it does not go: it runs on here.
        """
        is_second_instance, other = request.get("twin"), request.get("machine")
        if not isinstance(is_second_instance, bool) or not isinstance(other, list):
            raise UsageError("found no such request, expected one of a kvm-launch like this one")
        await self.describe(request)
        check_same([str(line) for line in other], await machine(self._monitor, self._pid))
        status = await self._monitor.execute("query-status", shape=_STATUS)
        if not status["running"]:
            raise QemuError(f"found the guest {status['status']}, expected it to run")
        name = f"{self._plan.name}{SUFFIXES[is_second_instance]}"
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                peer = await connected(self._run_dir.path.with_name(name) / INCOMING)
        except TimeoutError as error:
            raise QemuError(f"{name}: found nobody who takes the guest in time") from error
        with peer:
            await self._monitor.give(peer.fileno(), DESCRIPTOR)
        self._reporter.life.report("it migrates to another QEMU of this host")
        self._is_going = True
        try:
            outcome = await self._send()
        except QemuError:
            await self._stay()
            raise
        finally:
            self._is_going = False
        self._is_between = True
        self._after = asyncio.create_task(self._come_back(name))
        return [outcome]

    async def leave(self, _request: Mapping[str, Any]) -> list[str]:
        """Let this QEMU end: the guest is where it should be.

        Raises ``QemuError`` when it runs here again, or is asked to stop, which is done here: then
        it runs on once the other QEMU is gone.
        """
        if not self._is_between or self._after is None:
            raise QemuError("found the guest running here, expected that it waits to leave")
        self._check_stop()
        self._is_between = False
        self._after.cancel()
        self._leave()
        self._after = asyncio.create_task(self._quit())
        return ["it has left"]

    async def decided(self) -> None:
        """Wait until the guest is not in two QEMUs: if this one ended now, it would go on there.

        That takes ``PATIENCE_SECONDS`` at most.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._is_going or self._is_between:  # noqa: ASYNC110 -- no event tells
                    await asyncio.sleep(POLL_SECONDS)

    def _check_stop(self) -> None:
        """Raise ``QemuError`` when the VM is asked to stop: who asks waits for our end, not for
        that of the one that arrives.
        """
        if self._stop.was_asked:
            raise QemuError("it was asked to stop, expected that it runs on")

    async def _quit(self) -> None:
        await asyncio.sleep(POLL_SECONDS)  # the answer comes first: we end with QEMU
        with contextlib.suppress(QemuError):  # it has just ended by itself
            await self._monitor.execute("quit")

    async def _send(self) -> str:
        """Have QEMU send the guest. Raises ``QemuError``.

        An emulated guest stands still meanwhile: until QEMU 9.0 TCG forgets that pages were written
        after they had been sent (commit 03bfc2188f «physmem: Fix migration dirty bitmap coherency
        with TCG memory access»), and guests panic later.
        """
        await self._monitor.execute("migrate-set-parameters", {"max-bandwidth": BYTES_A_SECOND})
        if self._plan.accel == "tcg":
            await self._monitor.execute("stop")
        await self._monitor.execute("migrate", {"uri": f"fd:{DESCRIPTOR}"})
        return await self._finish()

    async def _finish(self) -> str:
        """Wait until the guest's memory is there. Raises ``QemuError``."""
        deadline = asyncio.get_running_loop().time() + MOST_SECONDS
        while True:
            now = await self._monitor.execute("query-migrate", shape=_MIGRATION)
            status = now.get("status")
            if status == "completed":
                still = "total-time" if self._plan.accel == "tcg" else "downtime"
                return f"its guest stood still for {now.get(still, 0)} ms"
            self._check_stop()
            if status in _FAILED:
                raise QemuError(
                    f"the migration {status}: {now.get('error-desc', 'no reason told')}"
                )
            if asyncio.get_running_loop().time() > deadline:
                raise QemuError(
                    f"its memory was not there after {MOST_SECONDS:g} s; it runs on here"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _status(self) -> str:
        return str((await self._monitor.execute("query-migrate", shape=_MIGRATION)).get("status"))

    async def _stay(self) -> None:
        """Let the guest run on here after it was not sent; nobody has been told that it may leave.

        QEMU refuses ``cont`` until the migration has ended (``qmp_cont()``, monitor/qmp-cmds.c).
        """
        with contextlib.suppress(QemuError):  # it has ended: that is seen elsewhere
            await self._monitor.execute("migrate_cancel")
            while (await self._status()) in _UNDER_WAY:  # noqa: ASYNC110 -- no event tells
                await asyncio.sleep(POLL_SECONDS)
            await self._monitor.execute("cont")

    async def _come_back(self, name: str) -> None:
        """Let the guest run on here when the other one, of the directory ``name``, is gone.

        Or when nobody has said in time that it has arrived; while the other QEMU lives its disks
        are locked, and this one cannot go on yet.
        """
        base, loop = self._run_dir.path.parent, asyncio.get_running_loop()
        until = loop.time() + PATIENCE_SECONDS
        while loop.time() < until and not is_free(base, name):  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(POLL_SECONDS)
        is_told = False
        while True:
            self._is_between = False  # before it runs: from now on nobody is told that it may leave
            try:
                await self._monitor.execute("cont")
            except QemuError as error:
                if not self._monitor.is_connected:
                    return  # QEMU has ended: that is seen elsewhere
                self._is_between = True
                if not is_told:
                    self._reporter.life.report(f"it cannot run on here yet: {error}")
                is_told = True
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._reporter.life.report("the other QEMU was not heard of again: it runs on here")
                return


class Receiver:
    """The side to which the guest comes."""

    def __init__(self, base: Path, name: str) -> None:
        """Find where the guest is. Raises ``LaunchError`` where it is not, or cannot go from.

        A supervisor of before there was ``patience`` on record compares no images, and sends an
        emulated guest while it runs.
        """
        found = find(base, name)
        if not found.patience:
            raise LaunchError(
                f"{name}: found it under an older kvm-launch, from which no guest goes safely: "
                "stop it, and start it anew"
            )
        self.name: Final = name
        self.is_second_instance: Final = not found.twin
        """The VM's own name and claim are taken by the one from which the guest comes."""
        self.has_arrived = False
        """The guest is here and nowhere else."""
        self._source = base / name

    @property
    def directory(self) -> str:
        """The run directory until the old QEMU has left."""
        return self.name + SUFFIXES[self.is_second_instance]

    def fitted(self, plan: Plan) -> Plan:
        """Return the plan with as many vCPUs as the guest has by now.

        Raises ``KvmhooksError`` unless it can come, and sees here what it saw there.
        """
        seen = ask(self._source, "describe", seconds=ASK_SECONDS)
        count = next((vcpus_in(line) for line in seen if line.startswith("-smp ")), 0)
        found = with_vcpus(plan, count) if 0 < count <= len(plan.vcpus) else plan
        check_same(guest_view(found), seen)
        return found

    async def receive(self, monitor: Monitor, run_dir: RunDir, pid: int) -> str:
        """Have the guest come; it stands still in both then.

        Raises ``KvmhooksError`` when it does not come: it runs on there, as when this is cancelled.
        """
        loop = asyncio.get_running_loop()
        request = {"twin": self.is_second_instance, "machine": await machine(monitor, pid)}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run_dir.path / INCOMING))
            listener.listen(1)
            listener.setblocking(False)
            sent = asyncio.ensure_future(
                asked(self._source, "migrate", seconds=MOST_SECONDS + 60, **request)
            )
            accepted = asyncio.ensure_future(loop.sock_accept(listener))
            try:
                await asyncio.wait({sent, accepted}, return_when=asyncio.FIRST_COMPLETED)
                if accepted.done():
                    with accepted.result()[0] as peer:
                        await monitor.give(peer.fileno(), DESCRIPTOR)
                    await monitor.execute("migrate-incoming", {"uri": f"fd:{DESCRIPTOR}"})
                try:
                    message = "; ".join(await sent)
                except LaunchError as error:  # no answer: it may have come for all that
                    if not accepted.done():
                        raise
                    message = str(error)
            finally:
                for task in (sent, accepted):
                    task.cancel()
                await asyncio.gather(sent, accepted, return_exceptions=True)
        await self._settled(monitor)
        return message

    async def take_over(self) -> None:
        """Have the old QEMU leave. Raises ``KvmhooksError`` when the guest runs on there.

        From the first byte of that on nothing may cancel it; whatever was to do so comes before.
        """
        await asyncio.sleep(0)
        await self._released()
        self.has_arrived = True

    async def _settled(self, monitor: Monitor) -> None:
        """Wait until all that was sent is taken in. Raises ``QemuError``."""
        until = asyncio.get_running_loop().time() + PATIENCE_SECONDS / 2
        while (now := await monitor.execute("query-status", shape=_STATUS))[
            "status"
        ] == "inmigrate":
            if asyncio.get_running_loop().time() > until:
                raise QemuError("the guest did not arrive in time; it runs on where it was")
            await asyncio.sleep(POLL_SECONDS)
        if now["running"] or now["status"] not in {"paused", "postmigrate"}:
            raise QemuError(f"found the guest {now['status']}, expected it to stand still")

    async def _released(self) -> None:
        """Have the old QEMU leave. Raises ``KvmhooksError`` when the guest runs on there.

        No answer may mean either, so it is asked for again, until it comes or neither the old QEMU
        nor its supervisor lives: then the guest is nowhere but here.
        """
        until = asyncio.get_running_loop().time() + LEAVE_SECONDS
        while True:
            try:
                await asked(self._source, "leave", seconds=PATIENCE_SECONDS)
            except LaunchError:
                if is_free(self._source.parent, self.name):
                    return
                if asyncio.get_running_loop().time() > until:
                    raise
                await asyncio.sleep(POLL_SECONDS)
            else:
                return
