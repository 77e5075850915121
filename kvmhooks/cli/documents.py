"""The documents that verbs are given: a file, or the standard input for ``-``."""

from __future__ import annotations

import sys
from pathlib import Path

from kvmhooks.errors import InputError


def read_document(name: str, limit: int = 4 << 20) -> bytes:
    """What stands in the file ``name``, or comes on the standard input for ``-``.

    Not more than ``limit`` bytes and one, so that who parses it can tell that it is too large.
    Raises ``InputError``.
    """
    try:
        if name == "-":
            return sys.stdin.buffer.read(limit + 1)
        with Path(name).open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error
