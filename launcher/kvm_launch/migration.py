"""A VM goes from one kvm-launch to another on this host, and its guest runs on.

The new one asks the old one's supervisor for everything (``kvm_launch.control``): what its guest
sees, which has to be the same here; then for the guest itself, over a socket of the new one's run
directory, which each gives to its QEMU as a descriptor (``migrate fd:…``, qapi/migration.json). At
last the guest stands still in both. Only the new one's ``leave`` lets the old one go, and only
after that is answered the new one lets the guest run: so it never runs twice, and if the new one is
not heard of again, it runs on in the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kvm_launch.control import Handler, ask
from kvm_launch.record import Account, find
from kvmhooks.errors import LaunchError, Problem, QemuError, SpecError
from kvmhooks.live.qmp import Monitor
from kvmhooks.live.rundir import RunDir
from kvmhooks.placement import Plan
from kvmhooks.render import qemu_argv
from kvmhooks.spec import VmSpec

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

POLL_SECONDS: Final = 0.1

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
    ) -> None:
        self._plan = plan
        self._monitor = monitor
        self._run_dir = run_dir
        self._account = account
        self._leave = leave
        self._waiting: asyncio.Task[None] | None = None

    @property
    def handlers(self) -> dict[str, Handler]:
        """What it answers to, by verb."""
        return {"describe": self.describe, "migrate": self.migrate, "leave": self.leave}

    async def describe(self, _request: Mapping[str, Any]) -> list[str]:
        """What the guest sees. Raises ``SpecError`` when it cannot go."""
        found = tuple(obstacles(self._plan.spec))
        if found:
            raise SpecError(self._plan.spec.source, found)
        return guest_view(self._plan)

    async def migrate(self, request: Mapping[str, Any]) -> list[str]:
        """Send the guest to the one who arrives; it stands still then. Raises ``QemuError``."""
        await self.describe(request)
        status = await self._monitor.execute("query-status")
        if not status["running"]:
            raise QemuError(f"found the guest {status['status']}, expected it to run")
        name = f"{self._plan.name}{SUFFIXES[request['twin'] is True]}"
        path = self._run_dir.path.with_name(name) / SOCKET
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            await self._monitor.give(peer.fileno(), DESCRIPTOR)
        self._account.life.note("it migrates to another QEMU of this host")
        await self._monitor.execute("migrate-set-parameters", {"max-bandwidth": BYTES_A_SECOND})
        await self._monitor.execute("migrate", {"uri": f"fd:{DESCRIPTOR}"})
        said = await self._finish()
        self._waiting = asyncio.create_task(self._come_back())
        return [said]

    async def leave(self, _request: Mapping[str, Any]) -> list[str]:
        """The guest is where it should be: this QEMU ends. Raises ``QemuError``: it came back."""
        if self._waiting is None or self._waiting.done():
            raise QemuError("found the guest running here, expected that it waits to leave")
        self._waiting.cancel()
        self._leave()
        self._waiting = asyncio.create_task(self._quit())
        return ["it has left"]

    async def _quit(self) -> None:
        await asyncio.sleep(POLL_SECONDS)  # the answer comes first: we end with QEMU
        with contextlib.suppress(QemuError):  # it has just ended by itself
            await self._monitor.execute("quit")

    async def _finish(self) -> str:
        """Wait until the guest's memory is there. Raises ``QemuError``; then it runs on here."""
        deadline = asyncio.get_running_loop().time() + MOST_SECONDS
        while True:
            now = await self._monitor.execute("query-migrate")
            status = now.get("status")
            if status == "completed":
                return f"its guest stood still for {now.get('downtime', 0)} ms"
            if status in {"failed", "cancelled"}:
                raise QemuError(
                    f"the migration {status}: {now.get('error-desc', 'no reason told')}"
                )
            if asyncio.get_running_loop().time() > deadline:
                await self._monitor.execute("migrate_cancel")
                raise QemuError(
                    f"its memory was not there after {MOST_SECONDS:g} s; it runs on here"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _come_back(self) -> None:
        """Let the guest run on here when nobody says that it has arrived."""
        await asyncio.sleep(PATIENCE_SECONDS)
        await self._monitor.execute("cont")
        self._account.life.note("the other QEMU was not heard of again: it runs on here")


class Receiver:
    """The side to which the guest comes."""

    def __init__(self, base: Path, name: str) -> None:
        self.name: Final = name
        self.is_twin: Final = not find(base, name).twin
        """Whether the VM's own name and claim are taken by the one from which the guest comes."""
        self._source = base / name

    @property
    def directory(self) -> str:
        """The run directory until the old QEMU has left."""
        return self.name + SUFFIXES[self.is_twin]

    def check(self, plan: Plan) -> None:
        """Raise ``KvmhooksError`` unless the guest can come, and sees here what it saw there."""
        check_same(guest_view(plan), ask(self._source, "describe"))

    async def receive(self, monitor: Monitor, run_dir: RunDir) -> str:
        """Have the guest come, and its old QEMU leave; it stands still here then.

        Raises ``KvmhooksError`` when it does not come: it runs on there.
        """
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run_dir.path / SOCKET))
            listener.listen(1)
            listener.setblocking(False)
            asked = asyncio.ensure_future(
                asyncio.to_thread(
                    ask, self._source, "migrate", seconds=MOST_SECONDS + 60, twin=self.is_twin
                )
            )
            accepted = asyncio.ensure_future(loop.sock_accept(listener))
            await asyncio.wait({asked, accepted}, return_when=asyncio.FIRST_COMPLETED)
            if not accepted.done():
                accepted.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await accepted
            else:
                with accepted.result()[0] as peer:
                    await monitor.give(peer.fileno(), DESCRIPTOR)
                await monitor.execute("migrate-incoming", {"uri": f"fd:{DESCRIPTOR}"})
            (said,) = await asked
        await self._settled(monitor)
        await asyncio.to_thread(ask, self._source, "leave")
        return said

    async def _settled(self, monitor: Monitor) -> None:
        """Wait until all that was sent is taken in. Raises ``QemuError``."""
        until = asyncio.get_running_loop().time() + PATIENCE_SECONDS / 2
        while (now := await monitor.execute("query-status"))["status"] == "inmigrate":
            if asyncio.get_running_loop().time() > until:
                raise QemuError("the guest did not arrive in time; it runs on where it was")
            await asyncio.sleep(POLL_SECONDS)
        if now["running"] or now["status"] not in {"paused", "postmigrate"}:
            raise QemuError(f"found the guest {now['status']}, expected it to stand still")


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with their values; an option without one has an empty value."""
    for at, word in enumerate(words):
        if word.startswith("-"):
            value = words[at + 1] if at + 1 < len(words) else ""
            yield word, "" if value.startswith("-") else value
