"""What is different between a domain and the tuned one, for people: no secret is shown."""

from __future__ import annotations

import difflib
import re
from typing import Final

SECRETS: Final = re.compile(
    r"""(\b(?:passwd|password|secret|key)\s*=\s*)("[^"]*"|'[^']*')|(-----BEGIN [^-]*-----).*?"""
    r"""(-----END [^-]*-----)""",
    re.DOTALL,
)
"""Attributes that hold a password (``<graphics passwd=>``), and keys in text."""

_ARGUMENT: Final = re.compile(
    r"""(<(?:\w+:)?(?:arg|env)\b[^>]*?\bvalue\s*=\s*)("[^"]*"|'[^']*')""", re.DOTALL
)
"""QEMU's own arguments and environment: anything may stand there."""

HIDDEN: Final = "********"


def hide(text: str) -> str:
    """The text with every secret replaced."""

    def masked(found: re.Match[str]) -> str:
        if found[1] is None:
            return f"{found[3]}{HIDDEN}{found[4]}"
        return f"{found[1]}{found[2][0]}{HIDDEN}{found[2][0]}"

    text = SECRETS.sub(masked, text)
    return _ARGUMENT.sub(lambda found: f"{found[1]}{found[2][0]}{HIDDEN}{found[2][0]}", text)


def unified(before: str, after: str, name: str) -> str:
    """The unified diff of two texts, secrets hidden in both."""
    lines = difflib.unified_diff(
        hide(before).splitlines(keepends=True),
        hide(after).splitlines(keepends=True),
        fromfile=name,
        tofile=f"{name} (tuned)",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
