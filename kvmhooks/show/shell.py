"""An argument list as a person would type it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def command_line(argv: Sequence[str]) -> str:
    """Return one option with its value a line, quoted for a shell, with a final newline."""
    words = [shlex.quote(word) for word in argv]
    parts = (f" \\\n    {word}" if word.startswith("-") else f" {word}" for word in words[1:])
    return "".join((words[0], *parts, "\n"))
