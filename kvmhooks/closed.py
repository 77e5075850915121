"""Paths at which nobody but root decides what is there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

MOST_LINKS: Final = 40
"""``MAXSYMLINKS`` (include/linux/namei.h): the kernel follows no more either."""

_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
"""With an access control list the group's bits are its mask (acl(5)): any other writer shows."""

ROOTS_ALONE: Final = (
    "one that nobody but root can change, nor any folder on the way to it: root runs it for "
    "another user's VM"
)
"""The words for a program that ``is_roots_alone`` refuses."""


def settled(path: Path, *, follows: bool = True) -> Path | None:
    """Return a path without links where nobody but root decides what is there; None elsewhere.

    Each directory on the way, also of links, is root's and closed to others. In one with the sticky
    bit, root's directories are too: nobody else can rename or remove them (``check_sticky()``,
    fs/namei.c); files there may be links, or hard links, that anybody has made. Without ``follows``
    a link at the end is meant itself.
    """
    at, waiting, links = Path("/"), list(reversed(path.parts[1:])), 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            at = at.parent
            continue
        try:
            above = at.stat()
            if not (_is_closed(above) or _is_sticky(above)):
                return None  # and nothing in it is looked at
            here = _status(at / part)
        except OSError:
            return None
        if here is None:
            return at / part if _is_closed(above) and not waiting else None
        is_roots_folder = stat.S_ISDIR(here.st_mode) and here.st_uid == 0
        if not (_is_closed(above) or is_roots_folder):
            return None
        if stat.S_ISLNK(here.st_mode) and (waiting or follows):
            links += 1
            if links > MOST_LINKS:
                return None
            target = (at / part).readlink()
            at = Path("/") if target.is_absolute() else at
            waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        else:
            at /= part
    return at


def is_roots_alone(program: Path) -> bool:
    """Return whether nobody but root decides what a program does; also of one that is not there."""
    found = settled(program)
    if found is None:
        return False
    status = _status(found)
    return status is None or _is_closed(status)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _is_closed(directory: os.stat_result) -> bool:
    return directory.st_uid == 0 and not directory.st_mode & _OTHERS


def _is_sticky(directory: os.stat_result) -> bool:
    return directory.st_uid == 0 and bool(directory.st_mode & stat.S_ISVTX)
