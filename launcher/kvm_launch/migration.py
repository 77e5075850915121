"""A VM goes from one kvm-launch to another on this host, and its guest runs on.

The new one asks the old one's supervisor for everything (``kvm_launch.control``): what its guest
sees, which has to be the same here; then for the guest itself, over a socket of the new one's run
directory, which each gives to its QEMU as a descriptor (``migrate fd:…``, qapi/migration.json). At
last the guest stands still in both. Only the new one's ``leave`` lets the old one go, and only
after that is answered the new one lets the guest run: so it never runs twice. If the new one ends
before that, or is not heard of again, it runs on in the old one; if the old one ends, in the new.

The new QEMU is made for the guest as it is by then: with as many vCPUs, and refused where something
else was plugged, taken out or put into a drive by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from kvm_launch.control import Handler, ask, asked
from kvm_launch.plugged import machine
from kvm_launch.record import Account, find
from kvm_launch.stop import Stop
from kvm_launch.vcpus import CRASH, slots_of, survives_unplug, there, version_of
from kvmhooks.errors import LaunchError, Problem, QemuError, SpecError, UsageError
from kvmhooks.live.qmp import Monitor
from kvmhooks.live.rundir import RunDir, is_free
from kvmhooks.live.unix import connected
from kvmhooks.placement import Plan
from kvmhooks.render import qemu_argv
from kvmhooks.spec import VmSpec
from kvmhooks.spec.forms import Number
from kvmhooks.values import CpuSet

SUFFIXES: Final = {True: "~", False: "~~"}
"""Of the run directory of a VM that arrives, as a twin or not; no VM's name has it.

They take turns: a QEMU that ends removes its sockets by the names that they were made with
(``qio_channel_socket_close()``, io/channel-socket.c), and the next one's must not be there.
"""

SOCKET: Final = "incoming.sock"

DESCRIPTOR: Final = "migration"
"""What both QEMUs call it."""

BYTES_A_SECOND: Final = 1 << 36
"""There is no network in between: as fast as memory is copied."""

MOST_SECONDS: Final = 600.0
"""How long the guest's memory may take: one that writes faster than it is copied never arrives."""

PATIENCE_SECONDS: Final = 30.0
"""How long a guest stands still in a QEMU that nobody has told to leave."""

LEAVE_SECONDS: Final = 120.0
"""How long the old supervisor may say nothing before the guest is left to it."""

ASK_SECONDS: Final = 10.0
"""How long it may take to tell what the guest sees."""

POLL_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 1.0

_FAILED: Final = frozenset({"failed", "cancelled"})
_UNDER_WAY: Final = frozenset({"setup", "active", "device", "pre-switchover", "cancelling"})
"""``MigrationStatus`` (qapi/migration.json)."""

_STATUS: Final = {"running": bool, "status": str}
_MIGRATION: Final = {"*status": str}

_SEEN: Final = frozenset(
    {"-accel", "-cpu", "-device", "-global", "-m", "-machine", "-numa", "-rtc", "-smbios", "-smp",
     "-uuid"}
)  # fmt: skip
"""Options of which a guest sees something; all others are the host's part."""


def obstacles(spec: VmSpec) -> Iterator[Problem]:
    """What keeps a VM where it is: of these there is only one, or their state is not QEMU's."""
    expected = "nothing that is bound to one QEMU of this host"
    there = {
        "pci": bool(spec.pci),
        "nvme": bool(spec.nvme),
        "mdev": bool(spec.mdev),
        "host_usb": bool(spec.host_usb),
        "filesystem": bool(spec.filesystem),
        "helper": bool(spec.helper),
        "tpm.model": spec.tpm.model != "none",
        "vsock.enabled": spec.vsock.enabled,
        "security.type": spec.security.type != "none",
    }
    for at, is_there in there.items():
        if is_there:
            yield Problem(at, "a VM that has it", expected)
    for index, net in enumerate(spec.net):
        if net.type not in {"user", "bridge"}:
            yield Problem(f"net[{index}].type", f'"{net.type}"', '"user" or "bridge", to migrate')


def guest_view(plan: Plan) -> list[str]:
    """QEMU's options of which the guest sees something, as lines."""
    words = qemu_argv(plan)[1:]
    return [f"{option} {value}" for option, value in _pairs(words) if option in _SEEN]


def check_same(here: Sequence[str], there: Sequence[str]) -> None:
    """Raise ``LaunchError`` with the first thing that the guest would see change."""
    for ours in here:
        if ours not in there:
            near = [line for line in there if line.partition(" ")[0] == ours.partition(" ")[0]]
            found = next((line for line in near if line not in here), "nothing like it")
            raise LaunchError(f"its guest has {found!r}, expected {ours!r}, as this plan has it")
    if missing := [line for line in there if line not in here]:
        raise LaunchError(f"its guest has {missing[0]!r}, which this plan has not")


class Sender:
    """The side on which the guest is."""

    def __init__(
        self,
        plan: Plan,
        monitor: Monitor,
        run_dir: RunDir,
        account: Account,
        leave: Callable[[], None],
        pid: int,
        stop: Stop,
    ) -> None:
        self._plan = plan
        self._monitor = monitor
        self._run_dir = run_dir
        self._account = account
        self._leave = leave
        self._stop = stop
        self._pid = pid
        """QEMU's."""
        self._is_between = False
        """Whether the guest stands still here, and may be let run in the other QEMU."""
        self._is_going = False
        """Whether its memory is on its way."""
        self._after: asyncio.Task[None] | None = None

    @property
    def handlers(self) -> dict[str, Handler]:
        """What it answers to, by verb."""
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
        twin, other = request.get("twin"), request.get("machine")
        if not isinstance(twin, bool) or not isinstance(other, list):
            raise UsageError("found no such request, expected one of a kvm-launch like this one")
        await self.describe(request)
        check_same([str(line) for line in other], await machine(self._monitor, self._pid))
        status = await self._monitor.execute("query-status", shape=_STATUS)
        if not status["running"]:
            raise QemuError(f"found the guest {status['status']}, expected it to run")
        name = f"{self._plan.name}{SUFFIXES[twin]}"
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                peer = await connected(self._run_dir.path.with_name(name) / SOCKET)
        except TimeoutError as error:
            raise QemuError(f"{name}: found nobody who takes the guest in time") from error
        with peer:
            await self._monitor.give(peer.fileno(), DESCRIPTOR)
        self._account.life.note("it migrates to another QEMU of this host")
        self._is_going = True
        try:
            said = await self._send()
        except QemuError:
            await self._stay()
            raise
        finally:
            self._is_going = False
        self._is_between = True
        self._after = asyncio.create_task(self._come_back(name))
        return [said]

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
                    self._account.life.note(f"it cannot run on here yet: {error}")
                is_told = True
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._account.life.note("the other QEMU was not heard of again: it runs on here")
                return


class Receiver:
    """The side to which the guest comes."""

    def __init__(self, base: Path, name: str) -> None:
        self.name: Final = name
        self.is_twin: Final = not find(base, name).twin
        """Whether the VM's own name and claim are taken by the one from which the guest comes."""
        self.has_arrived = False
        """Whether the guest is here and nowhere else."""
        self._source = base / name

    @property
    def directory(self) -> str:
        """The run directory until the old QEMU has left."""
        return self.name + SUFFIXES[self.is_twin]

    def fitted(self, plan: Plan) -> Plan:
        """Return the plan with as many vCPUs as the guest has by now.

        Raises ``KvmhooksError`` unless it can come, and sees here what it saw there.
        """
        seen = ask(self._source, "describe", seconds=ASK_SECONDS)
        count = next((_count(line) for line in seen if line.startswith("-smp ")), 0)
        found = with_vcpus(plan, count) if 0 < count <= len(plan.vcpus) else plan
        check_same(guest_view(found), seen)
        return found

    async def receive(self, monitor: Monitor, run_dir: RunDir, pid: int) -> str:
        """Have the guest come; it stands still in both then.

        Raises ``KvmhooksError`` when it does not come: it runs on there, as when this is cancelled.
        """
        loop = asyncio.get_running_loop()
        request = {"twin": self.is_twin, "machine": await machine(monitor, pid)}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run_dir.path / SOCKET))
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
                    said = "; ".join(await sent)
                except LaunchError as error:  # no answer: it may have come for all that
                    if not accepted.done():
                        raise
                    said = str(error)
            finally:
                for task in (sent, accepted):
                    task.cancel()
                await asyncio.gather(sent, accepted, return_exceptions=True)
        await self._settled(monitor)
        return said

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


def with_vcpus(plan: Plan, count: int) -> Plan:
    """Return a plan of which ``count`` vCPUs are there."""
    spec = plan.spec
    return attrs.evolve(
        plan, spec=attrs.evolve(spec, cpu=attrs.evolve(spec.cpu, current=Number(count)))
    )


def _count(smp: str) -> int:
    """Return how many vCPUs a line of ``-smp`` has from the start; 0 where it does not say."""
    found = re.match(r"-smp (\d{1,4}),", smp)
    return int(found[1]) if found else 0


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with their values; an option without one has an empty value."""
    for at, word in enumerate(words):
        if word.startswith("-"):
            value = words[at + 1] if at + 1 < len(words) else ""
            yield word, "" if value.startswith("-") else value
