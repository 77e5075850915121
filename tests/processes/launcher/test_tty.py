"""Output that outlives whoever reads it: a program of its own for each kind of reader."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvm_launch.talk.outlet import LIMIT, Channel, Outlet
from tests.integration.components import ROOT

PROGRAM = """
import sys
from kvm_launch.talk.tty import outliving
with outliving():
    print("before", flush=True)
    sys.stdin.read()
    print("after", flush=True)
    print("and again", file=sys.stderr)
    sys.stdout.buffer.write(b"bytes")
"""

FORKS = """
import os, sys, warnings
from kvm_launch.talk.tty import outliving
warnings.simplefilter("error")
with outliving():
    for number in range(200):
        print("parent", number)
        child = os.fork()
        if child == 0:
            with outliving():
                print("child", number)
            os._exit(0)
        os.waitpid(child, 0)
"""


@contextmanager
def program(text: str, out: int, err: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Python of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=out, stderr=err,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'launcher'}"},
    ) as process:  # fmt: skip
        yield process
        process.kill()


def test_a_program_outlives_its_terminal() -> None:
    """Text, errors and bytes: it ends with 0, before any signal has told it."""
    ours, theirs = pty.openpty()
    with program(PROGRAM, theirs, theirs) as process:
        os.close(theirs)
        output = b""
        while b"before" not in output:
            output += os.read(ours, 100)
        os.close(ours)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def test_two_names_of_one_file_keep_their_order(tmp_path: Path) -> None:
    """``2>&1``: what is said first stands first."""
    with (
        (tmp_path / "log").open("wb") as log,
        program(PROGRAM, log.fileno(), log.fileno()) as process,
    ):
        process.communicate(timeout=30)
    assert (tmp_path / "log").read_bytes() == b"before\nafter\nand again\nbytes"


def test_a_fork_neither_repeats_nor_loses_what_is_said() -> None:
    """Nor is it of a process with threads, which Python 3.12 and later warn of."""
    with program(FORKS, subprocess.PIPE, subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.decode().split("\n")[:-1] == [
        f"{who} {number}" for number in range(200) for who in ("parent", "child")
    ]


def test_a_descriptor_that_does_not_block_is_waited_for() -> None:
    """``O_NONBLOCK`` was set by somebody who shares it: nothing is lost, and it stays."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    channel = Channel(Outlet(), writer)
    text = bytes(range(256)) * 2000
    channel.write(text)
    output = b""
    while len(output) < len(text):
        output += os.read(reader, 1 << 12)
    assert output == text
    assert not os.get_blocking(writer)
    os.close(reader)
    os.close(writer)


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    """The queue is bounded, and its reader is told once it reads; a channel beside has its own."""
    reader, writer = os.pipe()
    channel = Channel(Outlet(), writer)
    other = channel.beside(name="[b] kvm-launch", limit=100)
    for _ in range(3):
        channel.write(b"x" * LIMIT)
    other.write(b"heard")
    assert (channel.waiting, channel.lost) == (LIMIT, 2 * LIMIT)
    assert not channel.outlet.drained(time.monotonic())
    output = b""
    while b"nobody took them\n" not in output:
        output += os.read(reader, 1 << 16)
    notice = f"\nkvm-launch: {2 * LIMIT} bytes of output are missing: nobody took them\n"
    assert output == b"x" * LIMIT + b"heard" + notice.encode()
    assert channel.outlet.drained(time.monotonic() + 10)
    assert channel.outlet.missing()[0] == 0
    os.close(reader)
    os.close(writer)


def test_what_failed_is_told_when_it_is_possible_again(tmp_path: Path) -> None:
    """A full disk that has room again: how much is missing, then what comes after."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    channel = Channel(Outlet(), descriptor)
    channel.write(b"lost")
    assert channel.outlet.drained(time.monotonic() + 10)
    assert channel.outlet.missing() == (4, "No space left on device")
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, descriptor)
    channel.write(b"kept")
    assert channel.outlet.drained(time.monotonic() + 10)
    assert (tmp_path / "log").read_text() == (
        "\nkvm-launch: 4 bytes of output are missing: No space left on device\nkept"
    )
    os.close(log)
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 3 * LIMIT])
def test_a_single_piece_is_always_taken(size: int) -> None:
    """Its length makes no difference, if nothing waits before it."""
    reader, writer = os.pipe()
    channel = Channel(Outlet(), writer)
    assert channel.write(b"x" * size) == size
    assert (channel.waiting <= size, channel.lost) == (True, 0)
    left = size
    while left:
        left -= len(os.read(reader, 1 << 16))
    os.close(reader)
    os.close(writer)
