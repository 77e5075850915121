"""The cache: a thing built is kept under a key that says everything that went into it.

An entry is a directory that appears under its name only when it is complete (it is built beside and
renamed), so an interrupted build leaves nothing that could be mistaken for a result. The locks are
``flock`` locks: the kernel drops them when their holder dies, so none can be stale.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .command import run
from .errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK_SECONDS = 45 * 60
"""The wait of one builder for another: more than the longest build on a slow machine."""


def directory() -> Path:
    """Return the folder of everything that the lab builds."""
    default = REPOSITORY / "build" / "lab"
    return Path(os.environ.get("KVMHOOKS_LAB_CACHE", default)).resolve()


def key_of(*parts: object) -> str:
    """A short name for this content: equal parts, equal name."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(*paths: Path) -> str:
    """The content of these files, and of all files below these directories, as a hash."""
    total = hashlib.sha256()
    for path in paths:
        for file in sorted(_files(path)):
            total.update(f"{file.relative_to(path.parent)}\0{file.stat().st_mode:o}\0".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory of this entry, which ``build`` fills if there is none yet."""
    final = directory() / kind / key
    if final.is_dir():
        os.utime(final)
        return final
    prefix = _prefix_of(key)
    with locked(_lock_of(final.parent, prefix)):
        if final.is_dir():  # another process built it while this one waited
            return final
        for interrupted in final.parent.glob(f"{prefix}*.partial"):  # as the lock was free
            _unmount_below(interrupted)
            shutil.rmtree(interrupted)
        partial = final.with_name(final.name + ".partial")
        partial.mkdir(parents=True)
        started = time.monotonic()
        say(f"building {kind}/{key}")
        build(partial)
        partial.rename(final)
        os.utime(final)  # prune goes by it, and an unpacked package brings its own date
        say(f"built {kind}/{key} in {time.monotonic() - started:.0f} s")
    return final


def _unmount_below(path: Path) -> None:
    """Unmount what a build that was killed has left mounted: this machine's ``/proc``, say."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted(points, reverse=True):
        if Path(point).is_relative_to(path):
            run(["umount", point])


def prune(kind: Path, *, prefix: str, keep: int) -> None:
    """Remove all but the latest entries of this name, those in use (see ``using``) excepted."""
    with open(_lock_of(kind, prefix), "a") as lock:
        if not _try_lock(lock, fcntl.LOCK_EX):
            return  # somebody builds one: there is no hurry
        entries = [path for path in kind.glob(f"{prefix}*") if path.suffix != ".partial"]
        entries.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for old in entries[keep:]:
            with open(old / "in-use", "a") as file:
                if _try_lock(file, fcntl.LOCK_EX):
                    shutil.rmtree(old)


@contextmanager
def using(path: Path) -> Iterator[None]:
    """While inside, ``prune`` leaves this entry alone."""
    with open(path / "in-use", "a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of this name, waiting for whoever has it, but not for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    with open(path, "a+") as file:
        if not _try_lock(file, fcntl.LOCK_EX):
            say(f"waiting for another process that builds ({path})")
            while not _try_lock(file, fcntl.LOCK_EX):
                if time.monotonic() > end:
                    raise LabError(f"{path} was held by another process for {seconds:.0f} s")
                time.sleep(0.5)
        yield


def say(message: str) -> None:
    """One line for the person who waits."""
    print(f"lab: {message}", flush=True)


def _prefix_of(key: str) -> str:
    """Return what a key has in common with those of the same variant or release: ``default-``."""
    name, dash, _ = key.rpartition("-")
    return name + dash


def _lock_of(kind: Path, prefix: str) -> Path:
    return kind.with_name(f"{kind.name}-{prefix}.lock".replace("-.", "."))


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for child in path.rglob("*"):
            if child.is_file() and "__pycache__" not in child.parts:
                yield child
    else:
        yield path
