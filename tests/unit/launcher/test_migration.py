"""The place of a guest when one of its two places fails: in one of them, and never in both."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from kvm_launch.life.guest_view import obstacles
from kvm_launch.life.migration import Receiver, Sender
from kvm_launch.life.stop import Stop
from kvm_launch.talk.control import listening, served
from kvm_launch.talk.socket_names import INCOMING, SUPERVISE
from kvm_launch.talk.vcpus import survives_unplug, there
from kvm_launch.tell.status import VmRecord
from kvmhooks.errors import LaunchError, QemuError
from kvmhooks.isolate.system.process_stat import start_time
from kvmhooks.isolate.system.system import System
from kvmhooks.qemu.run_dir import RunDir, is_free
from kvmhooks.qemu.unix import connected
from kvmhooks.spec import parse_vm
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = [
    ("kvm", (7, 2, 22), True),
    ("tcg", (7, 2, 22), False),
    ("tcg", (10, 0, 4), False),
    ("tcg", (10, 0, 5), True),
    ("tcg", (10, 1, 0), False),
    ("tcg", (10, 1, 1), True),
    ("tcg", (10, 2, 0), True),
]


def test_devices_whose_state_is_elsewhere_keep_a_guest_where_it_is() -> None:
    """Each is told by the key that asks for it; all others come along."""
    text = """
name = "a"
cpu.vcpus = 1
memory.size = "1GiB"
tpm.model = "crb"
vsock.enabled = true
host_usb = [{id = "046d:c52b"}, {id = "046d:c52c"}]
filesystem = [{path = "/srv", tag = "srv"}]
shared_memory = {}
watchdog.model = "i6300esb"
input = [{type = "tablet"}]
rng.source = "builtin"
"""
    found = [problem.at for problem in obstacles(parse_vm(text, folder=Path("/")))]
    at = ["filesystem", "host_usb", "vsock.enabled", "tpm.model", "shared_memory"]
    assert found == at


@pytest.mark.parametrize(("accel", "version", "survives"), VERSIONS)
def test_which_qemu_survives_that_a_vcpu_goes(
    accel: str,
    version: tuple[int, int, int],
    survives: bool,  # noqa: FBT001 -- of a table
) -> None:
    """KVM's does; the emulation was mended in two branches."""
    assert survives_unplug(accel, version) is survives


def test_who_is_there() -> None:
    """The places that have a vCPU, by their numbers."""
    slots = [{"qom-path": "/a"}, {}, {"qom-path": "/b"}]
    assert there(slots) == CpuSet({0, 2})


NEVER = Stop(None, 0)


class Qemu:
    """A monitor behind which a guest waits to go on."""

    def __init__(self, refusals: int = 0) -> None:
        self.said: list[str] = []
        self.is_connected = True
        self._refusals = refusals

    async def execute(self, command: str, *_: Any, **__: Any) -> Any:
        self.said.append(command)
        if command == "cont" and self._refusals:
            self._refusals -= 1
            raise QemuError('QEMU refused cont: Failed to get "write" lock')
        return {"status": "completed", "downtime": 5, "total-time": 5}


@pytest.mark.parametrize(("accel", "stops"), [("tcg", ["stop"]), ("kvm", [])])
def test_an_emulated_guest_stands_still_before_it_is_sent(accel: str, stops: list[str]) -> None:
    """QEMU's emulation forgets what a guest writes meanwhile, and the guest panics; not so KVM."""
    qemu = Qemu()
    plan: Any = SimpleNamespace(accel=accel)
    run_dir, reporter, kind = None, None, Sender
    made: Any = kind(plan, qemu, run_dir, reporter, lambda: None, 1, Stop(None, 0))  # type: ignore[arg-type]
    assert asyncio.run(made._send()) == "its guest stood still for 5 ms"
    assert qemu.said == ["migrate-set-parameters", *stops, "migrate", "query-migrate"]


def sender(base: Path, qemu: Qemu, left: list[str], stop: Stop = NEVER) -> Sender:
    """One whose guest stands still, to be let run in the directory ``vm~`` of ``base``."""

    class Silent:
        class life:  # noqa: N801 -- an attribute
            report = staticmethod(lambda _: None)

    run_dir = RunDir(base, "vm")
    made: Any = Sender(None, qemu, run_dir, Silent, lambda: left.append("left"), 1, stop)  # type: ignore[arg-type]
    made._is_between = True
    made._after = asyncio.create_task(made._come_back("vm~"))
    return made  # type: ignore[no-any-return]


@contextmanager
def locked(base: Path, name: str) -> Iterator[None]:
    """A VM whose supervisor or QEMU lives."""
    descriptor = os.open(base / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_a_guest_comes_back_once_the_other_is_gone(tmp_path: Path) -> None:
    """At once, and from then on nobody is told that it may leave."""
    qemu = Qemu()
    left: list[str] = []

    async def scene() -> None:
        with locked(tmp_path, "vm~"):
            leaving = sender(tmp_path, qemu, left)
            await asyncio.sleep(0.3)
            assert qemu.said == []
        await asyncio.sleep(0.3)
        assert qemu.said == ["cont"]
        with pytest.raises(QemuError, match="found the guest running here"):
            await leaving.leave({})

    asyncio.run(scene())
    assert left == []


def test_a_guest_that_was_let_go_does_not_come_back(tmp_path: Path) -> None:
    """Its QEMU is told to quit, and to nothing else, though the other one ends then."""
    qemu = Qemu()
    left: list[str] = []

    async def scene() -> None:
        with locked(tmp_path, "vm~"):
            leaving = sender(tmp_path, qemu, left)
            await asyncio.sleep(0)
            assert await leaving.leave({}) == ["it has left"]
        await asyncio.sleep(0.5)

    asyncio.run(scene())
    assert (qemu.said, left) == (["quit"], ["left"])


def test_a_guest_whose_disks_are_locked_may_still_leave(tmp_path: Path) -> None:
    """It could not go on here, so it is in one place only."""
    qemu = Qemu(refusals=1)
    left: list[str] = []

    async def scene() -> None:
        leaving = sender(tmp_path, qemu, left)
        await asyncio.sleep(0.3)
        assert qemu.said == ["cont"]
        assert await leaving.leave({}) == ["it has left"]
        await asyncio.sleep(1.2)

    asyncio.run(scene())
    assert (qemu.said, left) == (["cont", "quit"], ["left"])


def test_a_guest_that_is_asked_to_stop_does_not_leave(tmp_path: Path) -> None:
    """The one who asks waits for its end: it runs on here, the other QEMU gone, and stops."""
    qemu, left, stop = Qemu(), list[str](), Stop(None, 0)

    async def scene() -> None:
        with locked(tmp_path, "vm~"):
            leaving = sender(tmp_path, qemu, left, stop)
            await asyncio.sleep(0)
            stop.was_asked = True
            with pytest.raises(QemuError, match="it was asked to stop"):
                await leaving.leave({})
            waiting = asyncio.ensure_future(leaving.decided())
            await asyncio.sleep(0.2)
            assert (qemu.said, waiting.done()) == ([], False)  # to quit now would leave it there
        await waiting
        await asyncio.sleep(0.2)
        assert qemu.said == ["cont"]

    asyncio.run(scene())
    assert left == []


def test_a_guest_that_is_asked_to_stop_is_sent_no_further(tmp_path: Path) -> None:
    """All that is on its way by then is called back."""
    stop = Stop(None, 0)
    stop.was_asked = True

    class Slow(Qemu):
        async def execute(self, command: str, *words: Any, **more: Any) -> Any:
            return {**await super().execute(command, *words, **more), "status": "active"}

    async def scene() -> None:
        leaving = sender(tmp_path, Slow(), [], stop)
        with pytest.raises(QemuError, match="it was asked to stop"):
            await leaving._finish()

    asyncio.run(scene())


def receiver(base: Path, **more: object) -> Receiver:
    """One whose guest comes from ``vm``."""
    (base / "vm").mkdir()
    start = start_time(System(), os.getpid()) or 0
    record = VmRecord(name="vm", source="", supervisor=os.getpid(), supervisor_start=start)
    (base / "vm" / "status.json").write_text(
        json.dumps({"name": "vm", "source": "", "supervisor": record.supervisor, "patience": 90,
                    "supervisor_start": record.supervisor_start, **more})
    )  # fmt: skip
    return Receiver(base, "vm")


def test_no_guest_goes_from_a_supervisor_that_does_not_compare_its_disks(tmp_path: Path) -> None:
    """Such as that of a92f6b5, which goes on after an upgrade: its guest's disk would be swapped
    silently, so it stays there, and what can be done is said."""
    with pytest.raises(LaunchError) as refused:
        receiver(tmp_path, patience=0)
    assert str(refused.value) == (
        "vm: found it under an older kvm-launch, from which no guest goes safely: stop it, and "
        "start it anew"
    )


@pytest.mark.parametrize("has_come", [True, False])
def test_a_guest_has_come_whose_old_supervisor_did_not_live_to_say_so(
    tmp_path: Path,
    has_come: bool,  # noqa: FBT001 -- of a table
) -> None:
    """It is all here, and nowhere else; one of which a part is missing is not."""
    coming = receiver(tmp_path)

    class Arrives(Qemu):
        async def give(self, *_: object) -> None:
            self.said.append("getfd")

        async def execute(self, command: str, *_: Any, **__: Any) -> Any:
            self.said.append(command)
            status = "paused" if has_come else "internal-error"
            return {"status": status, "running": False} if command == "query-status" else []

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        with await connected(tmp_path / "vm~" / INCOMING):
            while "migrate-incoming" not in qemu.said:  # noqa: ASYNC110 -- no event tells
                await asyncio.sleep(0.01)
        (tmp_path / "vm" / SUPERVISE).unlink()
        writer.transport.abort()

    async def scene(run_dir: RunDir) -> None:
        async with await asyncio.start_unix_server(dies, tmp_path / "vm" / SUPERVISE):
            await coming.receive(qemu, run_dir, os.getpid())  # type: ignore[arg-type]
            await coming.take_over()

    qemu = Arrives()
    with RunDir(tmp_path, coming.directory) as run_dir:
        if has_come:
            asyncio.run(scene(run_dir))
        else:
            with pytest.raises(QemuError, match="expected it to stand still"):
                asyncio.run(scene(run_dir))
    assert coming.has_arrived is has_come


def test_a_guest_stays_when_its_old_place_has_ended(tmp_path: Path) -> None:
    """Nobody answers, and neither the old supervisor nor its QEMU lives: it is nowhere else."""
    asyncio.run(receiver(tmp_path)._released())


def test_a_guest_is_asked_for_until_there_is_an_answer(tmp_path: Path) -> None:
    """A QEMU that lives and says nothing may have it run there: its answer is waited for."""
    coming = receiver(tmp_path)
    asked = []

    async def leave(_: object) -> list[str]:
        asked.append(1)
        raise QemuError("found the guest running here")

    async def scene() -> None:
        with locked(tmp_path, "vm"):
            going = asyncio.ensure_future(coming._released())
            await asyncio.sleep(0.3)
            assert not going.done()
            async with served(listening(tmp_path / "vm"), {"leave": leave}):
                with pytest.raises(QemuError, match="found the guest running here"):
                    await going

    asyncio.run(scene())
    assert asked == [1]


def test_a_name_is_taken_when_it_is_free(tmp_path: Path) -> None:
    """Until then the directory keeps its own, and its lock."""
    with RunDir(tmp_path, "vm~") as run_dir:
        with locked(tmp_path, "vm"):
            assert not run_dir.take_name("vm")
            assert (run_dir.path.name, is_free(tmp_path, "vm~")) == ("vm~", False)
        assert run_dir.take_name("vm")
        assert (run_dir.path.name, is_free(tmp_path, "vm~")) == ("vm", True)
        assert not is_free(tmp_path, "vm")
    assert list(tmp_path.iterdir()) == []


def test_a_name_stays_taken_while_the_qemu_that_came_lives(tmp_path: Path) -> None:
    """It holds the lock that it inherited, whose file has the name by then; ours may be closed."""
    with RunDir(tmp_path, "vm~") as run_dir:
        inherited = os.dup(run_dir.lock)
        assert run_dir.take_name("vm")
        for descriptor in (run_dir._lock, run_dir._directory):
            assert descriptor is not None
            os.close(descriptor)
        run_dir._lock = None  # as if it was killed: nothing is removed
    assert not is_free(tmp_path, "vm")
    with pytest.raises(LaunchError, match="expected one that does not run"), RunDir(tmp_path, "vm"):
        pass
    os.close(inherited)
    assert is_free(tmp_path, "vm")


def test_a_record_is_one_or_is_passed_over(tmp_path: Path) -> None:
    """A file that no supervisor wrote is no VM; a key of a later version is no mistake."""
    receiver(tmp_path)
    path = tmp_path / "vm" / "status.json"
    good = json.loads(path.read_text())
    from kvm_launch.tell.status import running

    path.write_text(json.dumps({**good, "later": [1]}))
    assert [record.name for record in running(tmp_path)] == ["vm"]
    for bad in ("", "{", "[]", "[" * 60_000, json.dumps({**good, "supervisor": "1"}),
                json.dumps({**good, "since": []}), json.dumps({"name": "vm"})):  # fmt: skip
        path.write_text(bad)
        assert list(running(tmp_path)) == []
    path.unlink()
    os.mkfifo(path)
    assert list(running(tmp_path)) == []
