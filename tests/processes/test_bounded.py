"""Programs whose answer has bounds."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from kvmhooks.bounded import MOST_WORDS, Dialogue, run


def shell(script: str, *, seconds: float = 30, most: int = 1000, data: bytes = b"") -> object:
    """Run a script; return its exit status and what it printed, or the number of the error."""
    try:
        done = run(["/bin/sh", "-c", script], seconds=seconds, most=most, data=data)
    except OSError as error:
        return error.errno
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("script", "hears", "wanted"),
    [
        ("echo a; echo b >&2; exit 3", 0, (3, b"a\n", b"b\n")),
        ("kill -9 $$", 0, (-9, b"", b"")),
        ("wc -c", 1_000_000, (0, b"1000000\n", b"")),
        ("echo early", 1_000_000, (0, b"early\n", b"")),
        ("head -c 1000 /dev/zero", 0, (0, bytes(1000), b"")),
        ("head -c 1001 /dev/zero", 0, errno.EFBIG),
        ("exec cat /dev/zero", 0, errno.EFBIG),
        ("exec cat /dev/zero >&2", 0, errno.EFBIG),
        (f"head -c {MOST_WORDS} /dev/zero >&2", 0, (0, b"", bytes(MOST_WORDS))),
        ("pwd", 0, (0, b"/\n", b"")),
    ],
)
def test_an_answer_is_whole_or_an_error(script: str, hears: int, wanted: object) -> None:
    """A program's output comes whole, with its status; more than the bound is EFBIG."""
    assert shell(script, data=b"x" * hears) == wanted


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("head -n 1; echo ready; cat", b"first\nready\nlast\n"),
        ("printf rea; sleep 0.1; printf 'dy'; sleep 0.1; echo; cat", b"ready\nfirst\nlast\n"),
        ("echo ready >&2; head -n 1", b"first\n"),
        ("echo ready; exec <&-", b"ready\n"),
        ("true", b""),
    ],
)
def test_the_last_word_follows_its_sign(script: str, wanted: bytes) -> None:
    """Once the line is whole; a program that never gives the sign, or hears nothing, may end."""
    talk = Dialogue(b"first\n", b"ready", b"last\n")
    done = run(["/bin/sh", "-c", script], seconds=30, data=talk)
    assert done.stdout == wanted


@pytest.mark.parametrize("script", ["sleep 100", "exec >&- 2>&-; sleep 100", "sleep 100 & exit 0"])
def test_nobody_is_waited_for_longer_than_was_said(script: str, tmp_path: Path) -> None:
    """A late program is ETIMEDOUT, and gone with its group, also one that a child outlives."""
    noted = tmp_path / "pid"
    began = time.monotonic()
    assert shell(f"echo $$ >{noted}; {script}", seconds=0.5) == errno.ETIMEDOUT
    assert time.monotonic() - began < 10
    group = int(noted.read_text())
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("its group lives on")


def test_a_program_that_is_not_there_is_told() -> None:
    """The error is that of the one who tried to run it."""
    with pytest.raises(FileNotFoundError):
        run(["/no/such/program"], seconds=1)
