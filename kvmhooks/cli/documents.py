"""The documents that verbs are given: a file, or the standard input for ``-``."""

from __future__ import annotations

import json
import sys
from typing import Any

from kvmhooks import files
from kvmhooks.errors import InputError


def read_document(name: str, limit: int = 4 << 20) -> bytes:
    """Return the content of the file ``name``, or of the standard input for ``-``.

    Not more than ``limit`` bytes and one, so that who parses it can tell that it is too large.
    Raises ``InputError``.
    """
    try:
        if name != "-":
            return files.read(name, limit, pipe_seconds=files.PIPE_SECONDS)
        document = sys.stdin.buffer.read(limit + 1)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from error
    if not document:
        raise InputError("-: found nothing on the standard input, expected a document")
    return document


def read_json(name: str) -> Any:
    """Return the value of a JSON document. Raises ``InputError``."""
    try:
        return json.loads(read_document(name))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: found no JSON: {error}") from error
