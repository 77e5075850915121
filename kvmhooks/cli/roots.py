"""The root directory that a verb is given: what it must be, and what of it cannot be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from kvmhooks.errors import HostError, KvmhooksError


@contextmanager
def used(root: str | os.PathLike[str]) -> Iterator[None]:
    """Have each file below a root that cannot be used be one message.

    Raises ``HostError`` for it, and before anything is done where ``root`` is no directory. The
    output is printed outside: a closed pipe is no file of a root.
    """
    where = os.fspath(root)
    try:
        os.listdir(where)  # noqa: PTH208 -- whether it can be
    except OSError as error:
        raise HostError(f"{where}: cannot be read: {error.strerror}") from error
    try:
        yield
    except KvmhooksError:
        raise
    except OSError as error:
        raise HostError(f"{error.filename or where}: cannot be used: {error.strerror}") from error
    except ValueError as error:
        raise HostError(f"{where}: holds a file of no host: {error}") from error


def require_host(root: str) -> None:
    """Raise ``HostError`` where a root holds neither ``sys`` nor ``proc``."""
    if not {"sys", "proc"} & set(os.listdir(root)):  # noqa: PTH208 -- only names are wanted
        raise HostError(f"{root}: holds neither sys nor proc, so it is no host")
