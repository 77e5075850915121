"""The client for QMP, against a QEMU that says what a test has it say, and against a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from kvmhooks.errors import QemuError
from kvmhooks.live.qmp import Monitor, connect

QEMU = Path("/usr/bin/qemu-system-x86_64")
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
ANSWER = b'{"return": {}, "id": 1}\r\n'


@contextlib.contextmanager
def qemu(path: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """A monitor that one client may join, for which ``talk`` then speaks in a thread."""

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            talk(peer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(timeout=10)
    assert not thread.is_alive()


def asked(path: Path, use: Callable[[Monitor], Awaitable[object]], seconds: float = 5) -> object:
    """What ``use`` gives of a monitor that is connected."""

    async def run() -> object:
        async with connect(path, seconds=seconds) as monitor:
            return await use(monitor)

    return asyncio.run(run())


async def nothing(_: Monitor) -> None:
    """Ask for nothing."""


def read_commands(peer: socket.socket, count: int) -> list[dict[str, object]]:
    """The next commands; fewer where the client leaves."""
    with peer.makefile("rb") as file:
        return [json.loads(line) for _, line in zip(range(count), file, strict=False)]


def test_answers_find_their_questions(tmp_path: Path) -> None:
    """Whatever comes between, in whatever order and in whatever pieces, each command has its own
    answer and each event comes once, in order."""
    chance = random.Random(18)  # noqa: S311 -- an order, no secret
    names = [f"command-{number}" for number in range(20)]

    def talk(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        read_commands(peer, 1)
        peer.sendall(ANSWER)
        said = [
            json.dumps({"return": one["execute"], "id": one["id"]}) for one in
            read_commands(peer, len(names))
        ]  # fmt: skip
        chance.shuffle(said)
        for number in range(5):
            said.insert(number * 4, json.dumps({"event": "RESUME", "data": {"number": number}}))
        said.insert(3, json.dumps({"return": "of nobody", "id": 999}))
        stream = "\r\n".join(said).encode() + b"\r\n"
        while stream:
            length = chance.randint(1, 90)
            peer.sendall(stream[:length])
            stream = stream[length:]

    async def use(monitor: Monitor) -> list[object]:
        answers = await asyncio.gather(*(monitor.execute(name) for name in names))
        first = await monitor.next_event()
        rest = await monitor.last_events(seconds=5)
        assert [event["data"]["number"] for event in (first, *rest)] == [0, 1, 2, 3, 4]
        assert not monitor.is_connected
        return answers

    with qemu(tmp_path / "qmp", talk):
        assert asked(tmp_path / "qmp", use) == names


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"", "QEMU closed its monitor before it answered"),
        (b"HTTP/1.1 200\r\n", "QEMU closed its monitor before it answered: it said what is no QMP"),
        (b"[]\n", "QEMU closed its monitor before it answered: it said what is no QMP"),
        (b'{"neither": 1}\n', "QEMU closed its monitor before it answered: it said what is no"),
        (GREETING, "the connection to QEMU was lost during qmp_capabilities"),
        (GREETING + b'{"error": {"class": "A", "desc": "not you"}, "id": 1}\n',
         "QEMU refused qmp_capabilities: not you"),
    ],
)  # fmt: skip
def test_who_is_no_qemu_is_told_in_words(tmp_path: Path, said: bytes, expected: str) -> None:
    """A monitor that closes, talks otherwise or refuses at once ends in one message."""

    def talk(peer: socket.socket) -> None:
        peer.sendall(said.partition(b"\n")[0] + b"\n" if said else b"")
        if said.startswith(GREETING):
            read_commands(peer, 1)
            peer.sendall(said.removeprefix(GREETING))

    with qemu(tmp_path / "qmp", talk), pytest.raises(QemuError) as raised:
        asked(tmp_path / "qmp", nothing)
    assert str(raised.value).startswith(expected)


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    """Memory is not filled by who talks without pause."""

    def talk(peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for _ in range(200):
                peer.sendall(b"x" * (1 << 16))

    with qemu(tmp_path / "qmp", talk), pytest.raises(QemuError, match="a line of more than"):
        asked(tmp_path / "qmp", nothing)


def test_a_monitor_that_is_silent_or_absent_is_told(tmp_path: Path) -> None:
    """Within the time that was given, with the reason."""

    def silent(peer: socket.socket) -> None:
        peer.recv(1)

    with qemu(tmp_path / "qmp", silent), pytest.raises(QemuError, match="did not answer"):
        asked(tmp_path / "qmp", nothing, seconds=0.1)
    with pytest.raises(QemuError, match="closed its monitor"):
        asked(tmp_path / "absent", nothing)


def test_an_answer_that_is_late_is_nobodys(tmp_path: Path) -> None:
    """A command that QEMU does not answer in time is told; the next one has its own answer."""

    def talk(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        read_commands(peer, 1)
        peer.sendall(ANSWER)
        slow, quick = read_commands(peer, 2)
        for one in (slow, quick):
            peer.sendall(json.dumps({"return": one["execute"], "id": one["id"]}).encode() + b"\n")
        peer.recv(1)

    async def use(monitor: Monitor) -> object:
        with pytest.raises(QemuError, match=r"has not answered slow for 0\.05 s"):
            await monitor.execute("slow", seconds=0.05)
        assert monitor.is_connected
        return await monitor.execute("quick")

    with qemu(tmp_path / "qmp", talk):
        assert asked(tmp_path / "qmp", use) == "quick"


def test_who_waits_when_the_connection_ends_is_told(tmp_path: Path) -> None:
    """All commands that are under way, and all that come after."""

    def talk(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        read_commands(peer, 1)
        peer.sendall(ANSWER)
        read_commands(peer, 3)

    async def use(monitor: Monitor) -> object:
        waiting = [monitor.execute(name) for name in ("a", "b", "c")]
        said = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(QemuError) as late:
            await monitor.execute("late")
        return [*map(str, said), str(late.value)]

    with qemu(tmp_path / "qmp", talk):
        assert asked(tmp_path / "qmp", use) == [
            f"the connection to QEMU was lost during {name}" for name in ("a", "b", "c", "late")
        ]


@pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}: install qemu-system-x86")
def test_a_real_qemu_takes_commands_and_descriptors(tmp_path: Path) -> None:
    """It answers, refuses in its own words, tells of its end, and has the descriptor."""
    path = tmp_path / "qmp"
    options = ["-S", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none"]
    command = [str(QEMU), *options, "-qmp", f"unix:{path},server=on,wait=off"]

    async def use(monitor: Monitor) -> object:
        reading, writing = os.pipe()
        try:
            await monitor.give(reading, "one")
            await monitor.execute("closefd", {"fdname": "one"})  # refused, had it not come
        finally:
            os.close(reading)
            os.close(writing)
        with pytest.raises(QemuError, match="QEMU refused nonsense: The command nonsense has not"):
            await monitor.execute("nonsense")
        assert len(await monitor.execute("query-qmp-schema")) > 100
        await monitor.execute("quit")
        return [event["event"] for event in await monitor.last_events(seconds=10)]

    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        for _ in range(1000):
            if path.exists():
                break
            threading.Event().wait(0.01)
        assert asked(path, use, seconds=20) == ["SHUTDOWN"]
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
