"""Paths that the spec of a VM names: who opens what is there, where its QEMU is another user.

A user who can change a directory on the way to a file decides what the file is: with a link, also
one of ours. So what root does for another user it does by one rule (docs/contracts.md, by key):

- Where only root can have put what is there, root does it, below descriptors of directories and
  past no link; what is made goes to the user by its descriptor.
- Everywhere else it is done as that user, in a process that is nobody else
  (``kvm_launch.prepare.files``).

A file that QEMU opens itself is looked at as the user in any case. Without another user all is done
as who we are.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kvm_launch.prepare import files
from kvm_launch.prepare.user import User, ids_of
from kvmhooks import bounded
from kvmhooks.closed import settled
from kvmhooks.errors import LaunchError

SECONDS: Final = 60.0
"""The time that another user's file system may take to answer."""

PROGRAM: Final = Path(files.__file__).read_bytes().decode("ascii")
"""The text of the program, as it was loaded: the file may be another version's by then."""

UNREADABLE: Final = "found an answer that cannot be read"
"""The error where the answer is from a process that became another user, and may be in its hand."""


@frozen
class SeenPath:
    """A path as somebody finds it."""

    kind: str
    """``file``, ``folder``, ``block device``, ``other``, ``nothing``, or ``denied``."""
    size: int
    """In bytes."""
    access: int
    """The access to it that is allowed, as access(2) has it."""

    def may(self, mode: int) -> bool:
        """Return whether all of ``mode`` may be done with it."""
        return self.access & mode == mode


@frozen
class Blank:
    """An empty file that was made for a program to write."""

    path: str
    """The name by which the program knows it."""
    user: User | None
    """The user that the program has to be."""
    descriptors: tuple[int, ...]
    """The descriptors that the program has to inherit."""


def opener(path: Path, user: User | None) -> User | None:
    """Return who opens a path for a VM whose QEMU is ``user``; None: we do, as who we are."""
    return None if user is None or settled(path) is not None else user


def look(paths: Sequence[Path], user: User | None) -> list[SeenPath]:
    """Return what ``user`` finds at each path. Raises ``LaunchError`` when that cannot be seen."""
    names = [str(path) for path in paths]
    if user is None:
        return [SeenPath(*found) for found in files.look(names)]
    try:
        answer = _as(user, "look", "", data=json.dumps(names).encode())
    except OSError as error:
        raise LaunchError(f"machine.user: {user.name!r}: {error.strerror}") from error
    seen = _listed(answer)
    if len(seen) != len(names) or any(not _fits(entry, (str, int, int)) for entry in seen):
        raise LaunchError(f"machine.user: as {user.name!r}: {UNREADABLE}")
    return [SeenPath(*found) for found in seen]


def read(path: Path, user: User | None, *, limit: int, start: int = 0) -> bytes:
    """Return up to ``limit`` bytes of a regular file from ``start`` on. Raises ``OSError``."""
    return _do(path, user, "read", str(start), str(limit), most=limit)


def read_as(path: Path, user: User, *, limit: int) -> bytes:
    """Return up to ``limit`` bytes of a regular file that ``user`` may read. Raises ``OSError``."""
    return _as(user, "read", str(path), "0", str(limit), most=limit)


def make(path: Path, data: bytes, user: User | None) -> None:
    """Make a file for ``user`` alone, whole or not at all, over nothing. Raises ``OSError``."""
    _do(path, user, "make", data=data, follows=False)


def replace(path: Path, data: bytes, user: User | None) -> None:
    """Put a file for ``user`` alone in the place of what is there. Raises ``OSError``."""
    _do(path, user, "replace", data=data, follows=False)


def make_folder(path: Path, user: User | None) -> None:
    """Make a folder for ``user`` alone. Raises ``OSError`` where anything is."""
    _do(path, user, "make_folder", follows=False)


@contextmanager
def blank(path: Path, user: User | None) -> Iterator[Blank]:
    """Make an empty file for a program to write, and have it be ``user``'s once it has.

    When the context ends with an error the file is gone. Raises ``OSError`` where anything is.
    """
    found = None if user is None else settled(path)
    if user is not None and found is None:
        _as(user, "create", str(path))
        try:
            yield Blank(str(path), user, ())
        except BaseException:
            _as(user, "remove", str(path))
            raise
        return
    way = files.Way(is_linkless=found is not None)
    name = str(path if found is None else found)
    descriptor = files.create(name, way)
    try:
        yield Blank(f"/proc/self/fd/{descriptor}", None, (descriptor,))
        if user is not None:
            os.fchown(descriptor, user.uid, user.gid)
    except BaseException:
        files.remove(name, way)
        raise
    finally:
        os.close(descriptor)


def remove(path: Path, user: User | None) -> None:
    """Remove a file that ``blank`` has made, if it is there. Raises ``OSError``."""
    _do(path, user, "remove")


def _do(
    path: Path,
    user: User | None,
    verb: str,
    *words: str,
    data: bytes = b"",
    follows: bool = True,
    most: int = bounded.MOST,
) -> bytes:
    """Do what ``verb`` says, by whom it has to be done."""
    found = None if user is None else settled(path, follows=follows)
    if user is not None and found is None:
        return _as(user, verb, str(path), *words, data=data, most=most)
    owner = None if user is None else (user.uid, user.gid)
    way = files.Way(is_linkless=found is not None, owner=owner)
    return files.VERBS[verb](str(path if found is None else found), data, words, way) or b""


def _as(
    user: User, verb: str, path: str, *words: str, data: bytes = b"", most: int = bounded.MOST
) -> bytes:
    """Do it as ``user``, for an answer of up to ``most`` bytes. Raises ``OSError`` as if we had.

    A terminal's Ctrl-C does not reach that process: it is in a session of its own.
    """
    program = [sys.executable, "-I", "-S", "-c", PROGRAM]
    try:
        done = bounded.run(
            [*program, ids_of(user), verb, path, *words],
            seconds=SECONDS,
            most=most,
            data=data,
            environment={"LC_ALL": "C"},
        )
    except OSError as error:
        error.filename = path
        raise
    if done.returncode == 0:
        return done.stdout
    failed = _listed(done.stderr)
    if not _fits(failed, (int, str, str | None)):
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        how = reason or f"ended with {done.returncode}"
        raise LaunchError(f"{path or 'machine.user'}: as {user.name!r}: {how}")
    number, why, name = failed
    raise OSError(number, why, name or path)


def _listed(answer: bytes) -> list[Any]:
    """Return the list that is said in JSON; an empty one for anything else."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _fits(found: Any, kinds: Sequence[Any]) -> bool:
    """Return whether it is a list with one of each of ``kinds``."""
    return (
        isinstance(found, list)
        and len(found) == len(kinds)
        and all(isinstance(each, kind) for each, kind in zip(found, kinds, strict=True))
    )
