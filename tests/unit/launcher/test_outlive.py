"""Output to a terminal that is closed."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from kvm_launch.outlive import Terminal
from tests.integration.components import ROOT

PROGRAM = """
import sys
from kvm_launch.outlive import outlive_terminals
outlive_terminals()
print("before", flush=True)
sys.stdin.read()
print("after", flush=True)
print("and again", file=sys.stderr)
sys.stdout.buffer.write(b"bytes")
"""


def test_what_is_said_to_a_terminal_that_is_gone_is_said_to_nobody() -> None:
    """The first write fails, and no other is made."""
    ours, theirs = pty.openpty()
    terminal = Terminal(theirs, "w", closefd=False)
    assert terminal.write(b"one") == 3
    assert os.read(ours, 3) == b"one"
    os.close(ours)
    assert (terminal.write(memoryview(b"two")), terminal.write(b"three")) == (3, 5)
    assert Path(f"/proc/self/fd/{theirs}").readlink() == Path(os.devnull)
    os.close(theirs)


def test_any_other_failure_is_one() -> None:
    """A full disk is told."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError) as raised:  # noqa: PT011 -- its number is looked at
        Terminal(descriptor, "w", closefd=False).write(b"x")
    assert raised.value.errno == errno.ENOSPC
    os.close(descriptor)


def test_a_program_outlives_its_terminal() -> None:
    """Text, errors and bytes: it ends with 0, before any signal has told it."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE, stdout=theirs, stderr=theirs,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'launcher'}"},
    ) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        while b"before" not in said:
            said += os.read(ours, 100)
        os.close(ours)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
