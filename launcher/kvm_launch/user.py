"""The user as whom QEMU runs, where that is another than ours."""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from attrs import frozen

from kvmhooks.errors import LaunchError, Problem, SpecError
from kvmhooks.spec import VmSpec

DEVICES: Final = (Path("/dev/kvm"), Path("/dev/vhost-net"), Path("/dev/vfio/vfio"))
"""Whose groups QEMU gets, so that it may open them."""


@frozen
class User:
    """Ids to become before QEMU is run."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def user_of(spec: VmSpec) -> User | None:
    """The user of ``machine.user``; None to stay who we are.

    Raises ``SpecError`` for one who is not there, or whom only root could become.
    """
    name = spec.machine.user
    return None if name is None else user_named(spec, "machine.user", name)


def user_named(spec: VmSpec, at: str, name: str) -> User | None:
    """The user ``name`` that the key ``at`` has, in the same way."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise _wrong(spec, at, name, "a user of this host") from None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        expected = "nothing, or root to start it: only root can become another"
        raise _wrong(spec, at, name, expected)
    own = os.getgrouplist(name, entry.pw_gid)
    groups = {*own, *(gid for path in DEVICES if (gid := _group_of(path)))}
    return User(name, entry.pw_uid, entry.pw_gid, tuple(sorted(groups)))


def problems_of(user: User, look: Callable[[], Iterable[Problem]]) -> tuple[Problem, ...]:
    """What ``look`` finds when it looks as ``user``: in a process of its own, which ends.

    Raises ``LaunchError`` when that process fails.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            become(user)
            said = [(problem.at, problem.found, problem.expected) for problem in look()]
            os.write(writer, json.dumps(said).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise LaunchError(f"machine.user: it could not be seen what {user.name!r} may open")
    return tuple(Problem(*problem) for problem in json.loads(text))


def become(user: User) -> None:
    """Become another user for good. Raises ``OSError``."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)


def _group_of(path: Path) -> int:
    """The group that may read and write a device; 0 where that is nobody's but root's."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_gid if status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP else 0


def _wrong(spec: VmSpec, at: str, name: str, expected: str) -> SpecError:
    return SpecError(spec.source, (Problem(at, repr(name), expected),))
