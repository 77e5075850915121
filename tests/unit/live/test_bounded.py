"""Programs whose answer has bounds."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from kvmhooks.live.bounded import MOST_WORDS, run


def shell(script: str, *, seconds: float = 30, most: int = 1000, said: bytes = b"") -> object:
    """Run a script; return its exit status and what it printed, or the number of the error."""
    try:
        done = run(["/bin/sh", "-c", script], seconds=seconds, most=most, said=said)
    except OSError as error:
        return error.errno
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("script", "said", "wanted"),
    [
        ("echo a; echo b >&2; exit 3", b"", (3, b"a\n", b"b\n")),
        ("kill -9 $$", b"", (-9, b"", b"")),
        ("wc -c", b"x" * 1_000_000, (0, b"1000000\n", b"")),
        ("echo early", b"x" * 1_000_000, (0, b"early\n", b"")),
        ("head -c 1000 /dev/zero", b"", (0, bytes(1000), b"")),
        ("head -c 1001 /dev/zero", b"", errno.EFBIG),
        ("exec cat /dev/zero", b"", errno.EFBIG),
        ("exec cat /dev/zero >&2", b"", errno.EFBIG),
        (f"head -c {MOST_WORDS} /dev/zero >&2", b"", (0, b"", bytes(MOST_WORDS))),
        ("pwd", b"", (0, b"/\n", b"")),
    ],
)
def test_an_answer_is_whole_or_an_error(script: str, said: bytes, wanted: object) -> None:
    """What a program prints comes whole, with its status; more than the bound is EFBIG."""
    assert shell(script, said=said) == wanted


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
    """What cannot be run is the error of the one who tried."""
    with pytest.raises(FileNotFoundError):
        run(["/no/such/program"], seconds=1)
