"""The client for QMP, against a QEMU that says what a test has it say, and against a real one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.errors import QemuError
from kvmhooks.qemu.events import EVENT_BYTES, KEPT, MOST, MOST_BYTES, EventQueue
from kvmhooks.qemu.qmp import Monitor, connect

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
    """Return what ``use`` gives of a monitor that is connected."""

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
    """Each command has its own answer and each event comes once, in order, whatever comes between,
    in whatever order and in whatever pieces.
    """
    chance = random.Random(18)  # noqa: S311 -- an order, no secret
    names = [f"command-{number}" for number in range(20)]

    def talk(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        read_commands(peer, 1)
        peer.sendall(ANSWER)
        answers = [
            json.dumps({"return": command["execute"], "id": command["id"]}) for command in
            read_commands(peer, len(names))
        ]  # fmt: skip
        chance.shuffle(answers)
        for number in range(5):
            answers.insert(number * 4, json.dumps({"event": "RESET", "data": {"number": number}}))
        answers.insert(3, json.dumps({"return": "of nobody", "id": 999}))
        stream = "\r\n".join(answers).encode() + b"\r\n"
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
    ("greeting", "expected"),
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
def test_who_is_no_qemu_is_told_in_words(tmp_path: Path, greeting: bytes, expected: str) -> None:
    """A monitor that closes, talks otherwise or refuses at once ends in one message."""

    def talk(peer: socket.socket) -> None:
        peer.sendall(greeting.partition(b"\n")[0] + b"\n" if greeting else b"")
        if greeting.startswith(GREETING):
            read_commands(peer, 1)
            peer.sendall(greeting.removeprefix(GREETING))

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
        for answer in (slow, quick):
            peer.sendall(
                json.dumps({"return": answer["execute"], "id": answer["id"]}).encode() + b"\n"
            )
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
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(QemuError) as late:
            await monitor.execute("late")
        return [*map(str, outcomes), str(late.value)]

    with qemu(tmp_path / "qmp", talk):
        assert asked(tmp_path / "qmp", use) == [
            f"the connection to QEMU was lost during {name}" for name in ("a", "b", "c", "late")
        ]


HOSTILE = [
    b"5", b'"event"', b"[[]]", b'{"return": ' + b"[" * 60_000, b'{"event": ' + b"[" * 60_000,
    b"\xff\xfe", b'{"error": 5, "id": 2}', b'{"return": 5, "id": [2]}', b"9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE, ids=[repr(line[:12]) for line in HOSTILE])
def test_what_is_no_qmp_ends_the_connection_in_words(tmp_path: Path, line: bytes) -> None:
    """One who waits for an answer is told, and who asks later; the client is left without
    complaint.
    """

    def talk(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        read_commands(peer, 1)
        peer.sendall(ANSWER)
        read_commands(peer, 1)
        peer.sendall(line + b"\n")
        peer.recv(1)

    async def use(monitor: Monitor) -> None:
        for _ in range(2):
            with pytest.raises(QemuError, match="lost during query-status: it said what is no QMP"):
                await monitor.execute("query-status")

    with qemu(tmp_path / "qmp", talk):
        asked(tmp_path / "qmp", use)


@pytest.mark.parametrize(
    ("vcpus", "iothreads", "message"),
    [
        (5, [], r"query-cpus-fast: found 5 in QEMU's answer, expected a list"),
        ([{}], [], r"query-cpus-fast\[0\]: found no 'cpu-index' in QEMU's answer, expected one"),
        ([{"cpu-index": 0, "thread-id": [1]}], [], r"\[0\]\.thread-id: found \[1\] in .*number"),
        ([{"cpu-index": 0, "thread-id": True}], [], r"\[0\]\.thread-id: found True in .*number"),
        ([], [{"id": 5, "thread-id": 1}], r"query-iothreads\[0\]\.id: found 5 in .*a text"),
    ],
)
def test_threads_of_the_wrong_shape_are_an_error_of_qemu(
    tmp_path: Path, vcpus: object, iothreads: object, message: str
) -> None:
    """Each wrong answer is one message with its place."""

    def talk(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        for number, answer in enumerate(({}, vcpus, iothreads), 1):
            if read_commands(peer, 1):
                peer.sendall(json.dumps({"return": answer, "id": number}).encode() + b"\n")

    with qemu(tmp_path / "qmp", talk), pytest.raises(QemuError, match=message):
        asked(tmp_path / "qmp", Monitor.threads)


def test_a_flood_of_events_is_bounded_and_lets_others_run(tmp_path: Path) -> None:
    """Nobody takes them: timers run on, the latest of what matters stays, what is none is passed
    over, and the rest is counted."""
    sent = 3 * MOST
    flood = b'{"event": "BLOCK_IO_ERROR", "data": {}}\n' * sent
    long = json.dumps({"event": "BLOCK_IO_ERROR", "data": {"x": "x" * 60_000}}).encode() + b"\n"
    none = b'{"event": 5}\n{"event": "STOP", "data": 5}\n'

    def talk(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        read_commands(peer, 1)
        shutdown = b'{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}\n'
        peer.sendall(ANSWER + shutdown + none + flood + 50 * long)

    async def use(monitor: Monitor) -> list[dict[str, object]]:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while monitor.is_connected:
                turns += 1
                await asyncio.sleep(0)

        await count()
        left = await monitor.last_events(seconds=10)
        assert turns > sent
        assert len(left) <= MOST
        assert sum(len(json.dumps(event)) for event in left) <= MOST_BYTES
        assert len(left) + monitor.dropped_events == 1 + sent + 50
        return left

    with qemu(tmp_path / "qmp", talk):
        left = asked(tmp_path / "qmp", use, seconds=20)
    assert isinstance(left, list)
    assert left[0]["event"] == "SHUTDOWN"


@given(st.lists(st.tuples(st.sampled_from([*sorted(KEPT), "A", "B"]), st.integers(1, 1 << 17))))
def test_the_latest_of_what_matters_is_never_dropped(stream: list[tuple[str, int]]) -> None:
    """In whatever order they come, of whatever length; what is left is in order and fits."""

    async def story() -> tuple[list[dict[str, object]], int]:
        events = EventQueue()
        for number, (kind, length) in enumerate(stream):
            events.put({"event": kind, "number": number}, length)
        return events.take_all(), events.dropped

    left, dropped = asyncio.run(story())
    numbers = [int(str(event["number"])) for event in left]
    assert numbers == sorted(numbers)
    assert sum(stream[number][1] for number in numbers) <= MOST_BYTES
    assert len(left) + dropped == len(stream)
    for kind in KEPT:
        fit = [
            at for at, event in enumerate(stream) if event[0] == kind and event[1] <= EVENT_BYTES
        ]
        assert not fit or fit[-1] in numbers


def test_who_is_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    """No complaint of asyncio's follows: its command ends with the connection."""
    outcomes: list[object] = []

    def talk(peer: socket.socket) -> None:
        peer.sendall(GREETING)
        read_commands(peer, 1)
        peer.sendall(ANSWER)
        read_commands(peer, 1)

    async def use(monitor: Monitor) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: outcomes.append(what))
        waiting = asyncio.ensure_future(monitor.execute("query-status"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await monitor.last_events(seconds=5)
        await asyncio.sleep(0)
        gc.collect()

    with qemu(tmp_path / "qmp", talk):
        asked(tmp_path / "qmp", use)
    assert outcomes == []


@pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}: install qemu-system-x86")
def test_a_real_qemu_takes_commands_and_descriptors(tmp_path: Path) -> None:
    """It answers, refuses in its own words, tells of its end, and has the descriptor."""
    path = tmp_path / "qmp"
    listener = socket.socket(socket.AF_UNIX)  # its own would be there before it listens
    listener.bind(str(path))
    listener.listen()
    options = ["-S", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none"]
    at = f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"
    command = [str(QEMU), *options, "-chardev", at, "-mon", "chardev=qmp,mode=control"]

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

    with listener:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()])
    try:
        assert asked(path, use, seconds=20) == ["SHUTDOWN"]
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
