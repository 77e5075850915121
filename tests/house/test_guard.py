"""The things that a test leaves on the machine are seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import guard
from tests.integration.components import eventually

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_process_that_is_left_is_named() -> None:
    """The one that inherits the environment, however far it is from the test."""
    with subprocess.Popen(SLEEPS, start_new_session=True) as process:
        try:
            eventually(lambda: process.pid in dict(guard.processes(is_last=False)))
            assert "time.sleep(60)" in dict(guard.processes(is_last=False))[process.pid]
        finally:
            process.kill()
    assert process.pid not in dict(guard.processes(is_last=True))


def test_what_serves_the_session_may_stay_until_it_ends() -> None:
    """A process with the word for it counts at the end alone; a stranger never."""
    ours = {**os.environ, guard.STAYS: "1"}
    others = {**os.environ, guard.RUN: "/tmp/another"}
    with subprocess.Popen(SLEEPS, env=ours) as stays, subprocess.Popen(SLEEPS, env=others) as other:
        try:
            eventually(lambda: stays.pid in dict(guard.processes(is_last=True)))
            eventually(lambda: stays.pid not in dict(guard.processes(is_last=False)))
            assert guard.is_ours(other.pid), "it is a child of this process"
            assert not guard.is_ours(1)
        finally:
            stays.kill()
            other.kill()


def test_a_mount_and_a_device_file_that_changed_are_named() -> None:
    """Whole lines: what came, what went, and what is another now."""
    before = guard.Machine(frozenset({"1 / a"}), {"/dev/a": (1, 2, 0, 0), "/dev/b": (1, 3, 0, 0)})
    after = guard.Machine(frozenset({"2 / b"}), {"/dev/a": (1, 2, 7, 0), "/dev/c": (1, 3, 0, 0)})
    assert guard.changes(before, after) == [
        "mounted: 2 / b",
        "not mounted any more: 1 / a",
        "/dev/a: was (1, 2, 0, 0), is (1, 2, 7, 0) (mode, device, user, group)",
        "/dev/b: was (1, 3, 0, 0), is None (mode, device, user, group)",
        "/dev/c: was None, is (1, 3, 0, 0) (mode, device, user, group)",
    ]


def test_every_file_of_dev_is_looked_at() -> None:
    """Folders below it too, but for those that change by themselves."""
    devices = guard.look().devices
    assert "/dev/null" in devices
    assert not any(Path(path).parts[2] in {"pts", "shm"} for path in devices)
