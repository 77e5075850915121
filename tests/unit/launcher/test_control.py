"""The answers of a supervisor to whoever may connect, and what is believed of one that answers."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from kvm_launch.talk.control import CLIENTS, MAX_BYTES, ask, listening, served
from kvm_launch.talk.socket_names import SUPERVISE
from kvmhooks.errors import KvmhooksError, LaunchError, PlanError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PATIENCE = 0.5


async def _echo(request: Mapping[str, Any]) -> list[str]:
    return [str(request.get("word"))]


async def _refuse(_: Mapping[str, Any]) -> list[str]:
    raise PlanError("vcpus", "5", "4")


async def _break(request: Mapping[str, Any]) -> list[str]:
    return [request["words"]]


@contextmanager
def supervisor(directory: Path) -> Iterator[list[dict[str, Any]]]:
    """A server in a thread; what its loop was told of as a mistake."""
    mistakes: list[dict[str, Any]] = []
    handled: list[str] = []

    async def _slow(request: Mapping[str, Any]) -> list[str]:
        handled.append(str(request["word"]))
        await asyncio.sleep(PATIENCE)
        return handled

    handlers = {"echo": _echo, "refuse": _refuse, "break": _break, "slow": _slow}
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, told: mistakes.append(told))
    up, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with served(listening(directory), handlers, seconds=PATIENCE):
            up.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert up.wait(10)
        yield mistakes
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def say(directory: Path, *parts: bytes, ends: bool = False) -> Any:
    """The answer to what is sent, as JSON; None without one."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(directory / SUPERVISE))
        with suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                peer.sendall(part)
            if ends:
                peer.shutdown(socket.SHUT_WR)
        output = b""
        with suppress(ConnectionResetError):
            while chunk := peer.recv(1 << 16):
                output += chunk
    return json.loads(output) if output else None


NO_REQUEST = "found no request, expected a line with a JSON object"
EXPECTED = "expected one of: echo, refuse, break, slow"

SENT = {
    "no JSON": (b"{\n", NO_REQUEST),
    "no object": (b"[1]\n", NO_REQUEST),
    "a number": (b"7\n", NO_REQUEST),
    "no text": (b"\xff\xfe\x00\n", NO_REQUEST),
    "deep": (b"[" * 60_000 + b"\n", NO_REQUEST),
    "no verb": (b"{}\n", f"verb: found nothing, {EXPECTED}"),
    "another verb": (b'{"verb": "quit"}\n', f"verb: found 'quit', {EXPECTED}"),
    "a verb of lists": (b'{"verb": ["echo"]}\n', f"verb: found ['echo'], {EXPECTED}"),
    "a verb of escapes": (b'{"verb": "\\u001b[2J"}\n', f"verb: found '\\x1b[2J', {EXPECTED}"),
    "a long line": (
        b"x" * (2 * MAX_BYTES),
        f"found a line of more than {MAX_BYTES} bytes, expected a request",
    ),
}


@pytest.mark.parametrize(("line", "message"), SENT.values(), ids=SENT.keys())
def test_what_is_no_request_is_told_so(tmp_path: Path, line: bytes, message: str) -> None:
    """One answer, exit code 2; the next one is served."""
    with supervisor(tmp_path) as mistakes:
        assert say(tmp_path, line) == {"error": message, "code": 2}
        assert ask(tmp_path, "echo", word="a") == ["a"]
    assert mistakes == []


def test_half_a_line_is_no_request(tmp_path: Path) -> None:
    """One who ends it early, or never, is told so and let go of."""
    half = b'{"verb": "echo"}'
    late = f"found no whole line within {PATIENCE:g} s, expected a request"
    with supervisor(tmp_path):
        assert say(tmp_path, half, ends=True) == {"error": NO_REQUEST, "code": 2}
        assert say(tmp_path, half) == {"error": late, "code": 2}
        assert say(tmp_path, ends=True) is None


def test_a_mistake_of_ours_ends_no_vm(tmp_path: Path) -> None:
    """It is an answer, and told to the supervisor's own log."""
    with supervisor(tmp_path) as mistakes:
        message = "break: a mistake of kvm-launch: KeyError: 'words'"
        assert say(tmp_path, b'{"verb": "break"}\n') == {"error": message, "code": 3}
        with pytest.raises(LaunchError, match=r": vcpus: found 5, expected 4$"):
            ask(tmp_path, "refuse")
    assert [told["message"] for told in mistakes] == ["break: a mistake of kvm-launch"]


def test_many_who_say_nothing_keep_nobody_out_for_long(tmp_path: Path) -> None:
    """Beyond so many each is told so at once; none stays longer than its time."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- names
    with supervisor(tmp_path):
        idle = [socket.socket(socket.AF_UNIX) for _ in range(3 * CLIENTS)]
        for peer in idle:
            peer.connect(str(tmp_path / SUPERVISE))
        with pytest.raises(LaunchError, match=f"found {CLIENTS} others who ask, expected fewer"):
            ask(tmp_path, "echo")
        time.sleep(2 * PATIENCE)
        assert ask(tmp_path, "echo", word="b") == ["b"]
        for peer in idle:
            peer.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 -- names


def test_descriptors_that_are_sent_are_not_kept(tmp_path: Path) -> None:
    """SCM_RIGHTS (unix(7)): they are closed unseen, and the line is answered."""
    with supervisor(tmp_path):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- names
        with socket.socket(socket.AF_UNIX) as peer, open("/dev/null", "rb") as null:  # noqa: PTH123
            peer.connect(str(tmp_path / SUPERVISE))
            rights = array.array("i", [null.fileno()] * 50)
            line = b'{"verb": "echo", "word": "c"}\n'
            peer.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            assert json.loads(peer.recv(1 << 16)) == {"said": ["c"]}
        time.sleep(0.1)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 -- names


def test_nothing_is_done_for_who_has_gone(tmp_path: Path) -> None:
    """A request that waits for its turn is dropped with its connection; one that only sends no
    more is answered."""
    with supervisor(tmp_path):
        first = socket.socket(socket.AF_UNIX)
        first.connect(str(tmp_path / SUPERVISE))
        first.sendall(b'{"verb": "slow", "word": "first"}\n')
        time.sleep(0.1)
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect(str(tmp_path / SUPERVISE))
            gone.sendall(b'{"verb": "slow", "word": "gone"}\n')
        last = say(tmp_path, b'{"verb": "slow", "word": "last"}\n', ends=True)
        first.close()
    assert last == {"said": ["first", "last"]}


@contextmanager
def impostor(directory: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """A supervisor that answers as it likes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / SUPERVISE))
        listener.listen(1)

        def serve() -> None:
            with listener.accept()[0] as peer, suppress(OSError):
                answer(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)
        assert not thread.is_alive()


def _drip(peer: socket.socket) -> None:
    while True:
        peer.sendall(b" ")
        time.sleep(0.05)


ANSWERS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "nothing": (lambda _: None, "its supervisor gave no answer: the VM has ended"),
    "silence": (lambda _: time.sleep(2 * PATIENCE), f"no answer within {PATIENCE:g} s"),
    "a byte now and then": (_drip, f"no answer within {PATIENCE:g} s"),
    "no end": (lambda peer: peer.sendall(b"x" * (1 << 23)), "an answer of more than 1048576 bytes"),
    "no JSON": (lambda peer: peer.sendall(b"}\n"), "found no answer that can be read"),
    "deep": (lambda peer: peer.sendall(b"[" * 90_000 + b"\n"), "found no answer that can be read"),
    "no object": (lambda peer: peer.sendall(b"[1]\n"), "found no answer that can be read"),
    "said what": (lambda peer: peer.sendall(b'{"said": 1}\n'), "found no answer that can be read"),
    "a code of lists": (
        lambda peer: peer.sendall(b'{"error": "x", "code": []}\n'),
        "found no answer that can be read",
    ),
    "escapes": (
        lambda peer: peer.sendall(b'{"error": "\\u001b[2J", "code": 3}\n'),
        r": \\u001b\[2J$",
    ),
}


@pytest.mark.parametrize(("answer", "message"), ANSWERS.values(), ids=ANSWERS.keys())
def test_whatever_answers_is_a_message_in_time(
    tmp_path: Path, answer: Callable[[socket.socket], None], message: str
) -> None:
    """One message without escapes, and the end, not long after the time is over."""
    begun = time.monotonic()
    patience = PATIENCE if message.startswith("no answer") else 10 * PATIENCE
    with impostor(tmp_path, answer), pytest.raises(KvmhooksError, match=message):
        ask(tmp_path, "echo", seconds=patience)
    assert time.monotonic() - begun < 4 * patience


def test_a_queue_that_is_full_is_waited_for_in_vain(tmp_path: Path) -> None:
    """A supervisor that accepts nobody any more is none that is not there."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SUPERVISE))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / SUPERVISE))
            with pytest.raises(LaunchError, match=r"no answer within 0\.5 s"):
                ask(tmp_path, "echo", seconds=PATIENCE)


def test_a_request_that_is_too_long_is_not_sent(tmp_path: Path) -> None:
    """Nobody is there, and nobody was asked."""
    with pytest.raises(UsageError, match=r"echo: found 7\d+ bytes, expected at most 65536"):
        ask(tmp_path, "echo", word="x" * 70_000)
    with pytest.raises(LaunchError, match=f"found no {SUPERVISE} in {tmp_path}, expected"):
        ask(tmp_path, "echo")
