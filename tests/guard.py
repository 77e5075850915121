"""The things that a test may not leave on the machine: processes, mounts, changed device files.

A process is told by what it inherits from the tests: a word of the environment, or, for a QEMU of
the tests' own libvirtd, whose environment libvirt makes anew, a mount below the run's directory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

RUN: Final = "KVMHOOKS_TESTS"
"""The word of the environment: the directory below which all files of one run of pytest are, or of
one worker of it."""

STAYS: Final = "KVMHOOKS_TESTS_STAYS"
"""Its processes may stay until the session ends: they serve several modules."""

PATIENCE: Final = 5.0
"""Seconds that a process may take to end after its test."""

_OTHERS: Final = frozenset({"pts", "shm", "mqueue", "hugepages", "fd"})
"""Entries of ``/dev`` that change with whatever else runs on the machine."""


class Machine(NamedTuple):
    """The parts of the machine that have to be afterwards as they were before."""

    mounts: frozenset[str]
    """Lines of proc_pid_mountinfo(5), in the mount namespace of the tests."""
    devices: dict[str, tuple[int, int, int, int]]
    """Mode, device number, user and group of each file of ``/dev``."""


def mark(base: Path) -> None:
    """Put the word into the environment that every process of this run inherits."""
    os.environ[RUN] = str(base)


def look() -> Machine:
    """Return the machine as it is now."""
    mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")
    return Machine(frozenset(mounts), dict(_devices(Path("/dev"))))


def changes(before: Machine, after: Machine) -> list[str]:
    """Return a line for each difference."""
    found = [f"mounted: {line}" for line in sorted(after.mounts - before.mounts)]
    found += [f"not mounted any more: {line}" for line in sorted(before.mounts - after.mounts)]
    for path in sorted(before.devices.keys() | after.devices.keys()):
        old, new = before.devices.get(path), after.devices.get(path)
        if old != new:
            found.append(f"{path}: was {old}, is {new} (mode, device, user, group)")
    return found


def left_running(*, is_last: bool) -> list[str]:
    """Return the processes of this run that do not end within ``PATIENCE``, a line each.

    Those that may stay until the session ends count only when it does.
    """
    until = time.monotonic() + PATIENCE
    while found := dict(processes(is_last=is_last)):
        if time.monotonic() > until:
            return [f"process {pid}: {words}" for pid, words in found.items()]
        time.sleep(0.1)
    return []


def is_ours(pid: int) -> bool:
    """Tell whether a process comes from this run; one just forked has the environment of pytest."""
    if _read(pid, "stat").rpartition(b")")[2].split()[1:2] == [str(os.getpid()).encode()]:
        return True
    return _is_marked(pid) or os.fsencode(f"{os.environ[RUN]}/") in _read(pid, "mountinfo")


def processes(*, is_last: bool) -> Iterator[tuple[int, str]]:
    """Give each other process of this run with its command line; not those that may stay yet."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        words = _read(pid, "cmdline")  # empty for a zombie, which its parent will reap
        # A QEMU of the tests' libvirtd bears no mark, and stays no longer than that one.
        may_stay = _is_marked(pid, STAYS, "1") or not _is_marked(pid)
        if words and is_ours(pid) and (is_last or not may_stay):
            yield pid, words.replace(b"\0", b" ").decode(errors="replace").strip()


def _is_marked(pid: int, word: str = RUN, value: str | None = None) -> bool:
    value = os.environ[RUN] if value is None else value
    return os.fsencode(f"{word}={value}") in _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


def _devices(folder: Path) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    for entry in os.scandir(folder):
        if folder == Path("/dev") and entry.name in _OTHERS:
            continue
        status = entry.stat(follow_symlinks=False)
        yield entry.path, (status.st_mode, status.st_rdev, status.st_uid, status.st_gid)
        if entry.is_dir(follow_symlinks=False):
            yield from _devices(Path(entry.path))
