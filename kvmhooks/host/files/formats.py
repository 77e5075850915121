"""The forms in which the kernel writes numbers and sets; anything else is a ``ValueError``."""

from __future__ import annotations

import re
from typing import Final

from kvmhooks.errors import ValueFormatError
from kvmhooks.values import CpuSet

_MASK: Final = re.compile(r"[0-9a-f]{1,8}(?:,[0-9a-f]{8})*", re.ASCII)
_MASK_LIMIT: Final = 16 * 1024
"""No longer than the mask of the most CPUs there can be."""

_WORD: Final = re.compile(r"[^ \t\n]+")


def split_lines(text: str) -> list[str]:
    """Return the lines of a kernel's file: only a newline ends one, and none follows the last.

    ``str.splitlines`` ends lines at ten more characters, which may stand in a name that another
    user chose: of a mount the kernel escapes no more than space, tab, newline, backslash and hash
    (``mangle()``, fs/proc_namespace.c).
    """
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def split_words(text: str) -> list[str]:
    """Return the words of a kernel's file: only space, tab and newline are between them."""
    return _WORD.findall(text)


def parse_integer(text: str) -> int:
    """Read a whole number; most are short and not negative."""
    if text.isdecimal() and text.isascii() and len(text) < 20:
        return int(text)
    if len(text) > 20:
        raise ValueFormatError(text, "a whole number of 64 bits")
    if not text.lstrip("-").isdecimal() or not text.isascii():
        raise ValueFormatError(text, "a whole number")
    return int(text)


def parse_cpus(text: str) -> CpuSet:
    """Read a list."""
    # The kernel prints a mask it never allocated as "(null)": nohz_full when none were asked for.
    return CpuSet() if text == "(null)" else CpuSet.parse(text)


def parse_mask(text: str) -> CpuSet:
    """Read a mask in the kernel's own form at once; any other goes to the careful parser."""
    if len(text) < _MASK_LIMIT and _MASK.fullmatch(text):
        return CpuSet.from_mask(int(text.replace(",", ""), 16))
    return CpuSet.parse_mask(text)
