"""The words of a hook call, to the system's log and to libvirt, in any state of its files.

A closed or full stderr, a log that is not there, a name with a line break in it: none of these may
change how the call ends.
"""

from __future__ import annotations

import sys

from kvmhooks.errors import words_of as _words_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MOST: Final = 1_000
"""Characters of an error that are told."""


def log(root: str, line: str) -> None:
    """Send a line to the system's log as an error, if that can be had at all."""
    try:
        from kvmhooks.isolate.system.system import System  # noqa: PLC0415 -- it may be what is broken

        System(root).log(line, severity=3)
    except BaseException:  # noqa: BLE001 -- there is nowhere left to tell it
        return


def tell(line: str) -> None:
    """Write a line to stderr, which libvirt shows when the exit code is not 0."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(f"{line}\n")
    except (OSError, ValueError):  # closed, or its disk is full: the exit code says the same
        return


def words_of(error: BaseException) -> str:
    """Return what an error says, as one line."""
    return printable(" ".join(_words_of(error).split()) or type(error).__name__, _MOST)


def printable(text: str, most: int = 80) -> str:
    """Return a text for a line: without line breaks, and no more characters than this."""
    return "".join(char if char.isprintable() else "?" for char in text[:most])
