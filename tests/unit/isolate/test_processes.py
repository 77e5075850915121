"""Steps that are taken in a child, and are not waited for without end."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.record.store import LockedError, Store
from kvmhooks.isolate.system.processes import StuckError, output, within
from kvmhooks.isolate.system.system import System

if TYPE_CHECKING:
    from collections.abc import Callable


UNHEARD = 0
"""A signal that no process hears (kill(2))."""


def _sleep_long() -> None:
    time.sleep(60)


def test_a_step_is_taken_before_the_call_returns(tmp_path: Path) -> None:
    """The text that the child wrote is there."""
    (tmp_path / "a").write_text("before, and longer\n")
    System(str(tmp_path)).write_within(5, "a", "after")
    assert (tmp_path / "a").read_text().strip() == "after"


@pytest.mark.parametrize(
    ("path", "number"), [("missing", errno.ENOENT), (".", errno.EISDIR)], ids=["ENOENT", "EISDIR"]
)
def test_the_kernels_errno_comes_back(tmp_path: Path, path: str, number: int) -> None:
    """The parent raises what the child met."""
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        System(str(tmp_path)).write_within(5, path, "x")
    assert caught.value.errno == number


def test_a_step_that_can_be_broken_off_is() -> None:
    """It is killed, reaped and told as a time that ran out."""
    begun = time.monotonic()
    with pytest.raises(OSError, match="no answer within") as caught:
        within(0.1, _sleep_long)
    assert caught.value.errno == errno.ETIMEDOUT
    assert time.monotonic() - begun < 30


def test_a_step_that_hears_no_signal_is_left() -> None:
    """The error names the process, which is the child's own."""
    with pytest.raises(StuckError, match="still waits") as caught:
        within(0.1, _sleep_long, UNHEARD)
    pid = caught.value.pid
    assert Path(f"/proc/{pid}/stat").read_text().split()[3] == str(os.getpid())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _holding(store: Store, system: System, action: Callable[[], None]) -> None:
    with store.lock(system, 1):
        action()


def test_a_child_that_hangs_holds_no_lock_and_no_pipe(tmp_path: Path) -> None:
    """A process that waits for either goes on although the child does not end."""
    root = str(tmp_path)
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # as libvirt's pipes are
    with pytest.raises(StuckError) as caught:
        _holding(Store(root), System(root), lambda: within(0.1, _sleep_long, UNHEARD))
    os.close(writer)
    try:
        with Store(root).lock(System(root), 0):
            assert select.select([reader], [], [], 5)[0] == [reader]
            assert os.read(reader, 1) == b""
            with pytest.raises(LockedError), Store(root).lock(System(root), 0):
                pass
    finally:
        os.close(reader)
        os.kill(caught.value.pid, signal.SIGKILL)
        os.waitpid(caught.value.pid, 0)


def test_what_a_program_prints_comes_back() -> None:
    """Nothing of ours is its own but that; its last words are the reason of a failure."""
    assert output(["/bin/sh", "-c", "echo one; pwd; echo three >&2"], 10) == "one\n/\nthree\n"
    with pytest.raises(IsolationError, match=r"^the reason$"):
        output(["/bin/sh", "-c", "echo what; echo the reason >&2; exit 3"], 10)
    with pytest.raises(IsolationError, match=r"^/nowhere/x: No such file or directory$"):
        output(["/nowhere/x"], 10)
    with pytest.raises(IsolationError, match=r"^/bin/sh: no answer within 0.5 s$"):
        output(["/bin/sh", "-c", "echo an answer; exec sleep 60"], 0.5)
