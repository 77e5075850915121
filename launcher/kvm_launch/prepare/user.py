"""The user as whom QEMU runs, where that is another than ours."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from kvmhooks.errors import Problem, SpecError

if TYPE_CHECKING:
    from kvmhooks.spec import VmSpec

DEVICES: Final = (Path("/dev/kvm"), Path("/dev/vhost-net"), Path("/dev/vfio/vfio"))
"""The devices whose groups QEMU gets, so that it may open them."""


@frozen
class User:
    """Ids to become before QEMU is run."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def user_of(spec: VmSpec) -> User | None:
    """Return the user of ``machine.user``; None to stay who we are.

    Raises ``SpecError`` for one who is not there, or whom only root could become.
    """
    name = spec.machine.user
    return None if name is None else user_named(spec, "machine.user", name)


def maker_of(spec: VmSpec) -> User | None:
    """Return for whom the VM's files are made, also by root for libvirt; None: for who we are.

    Raises ``SpecError`` as ``user_of``. An ordinary user makes what libvirt will give to another.
    """
    return user_of(spec) if os.geteuid() == 0 else None


def user_named(spec: VmSpec, at: str, name: str) -> User | None:
    """Return the user ``name`` that the key ``at`` has, in the same way."""
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


def ids_of(user: User | None) -> str:
    """Return whom a child becomes, as ``spawn.privileges`` and ``prepare.files``
    take it.
    """
    groups = "" if user is None else ",".join(map(str, user.groups))
    return "" if user is None else f"{user.uid}:{user.gid}:{groups}"


def _group_of(path: Path) -> int:
    """Return the group that may read and write a device; 0 where that is nobody's but root's."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_gid if status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP else 0


def _wrong(spec: VmSpec, at: str, name: str, expected: str) -> SpecError:
    return SpecError(spec.source, (Problem(at, repr(name), expected),))
