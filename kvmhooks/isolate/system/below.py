"""The target of a path of a tree of files: never out of the tree, and never a device.

A captured host may have links to anywhere, and devices. Only a system with another root than ``/``
needs this, so the hook never loads it.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_LINKS_LIMIT: Final = 40
"""The kernel's ``MAXSYMLINKS``, include/linux/namei.h."""


def resolve(root: str, path: str, *, is_followed: bool = True) -> str:
    """Return where a path leads, links followed as if ``root`` were ``/`` (``chroot(2)``).

    A name that is not there is no link; the last part, as a link, is kept unless ``is_followed``.
    ``root`` ends with a slash. Raises ``OSError`` where the links go round in a circle.
    """
    done: list[str] = []
    todo = path.split("/")[::-1]
    links = 0
    while todo:
        name = todo.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            del done[-1:]
            continue
        at = root + "/".join([*done, name])
        is_last = not any(todo)
        try:
            mode = os.lstat(at).st_mode
        except OSError:  # the path's user meets the same
            return "/".join([at, *todo[::-1]])
        if not stat.S_ISLNK(mode) or (is_last and not is_followed):
            done.append(name)
            continue
        links += 1
        if links > _LINKS_LIMIT:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(at)  # noqa: PTH115 -- as in system.py
        if target.startswith("/"):
            done = []
        todo += target.split("/")[::-1]
    return root + "/".join(done)


def plain(root: str, path: str, *, is_followed: bool = True) -> str:
    """Return where a path leads that is to be opened.

    Raises ``OSError`` also for what is there and is no file: to open a device is to use it (a
    watchdog starts). A directory is for the kernel to refuse, and so is a link not ``is_followed``.
    """
    at = resolve(root, path, is_followed=is_followed)
    try:
        kind = stat.S_IFMT(os.lstat(at).st_mode)
    except FileNotFoundError:
        return at
    if kind not in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}:
        raise OSError(errno.EINVAL, "is no regular file", path)
    return at
