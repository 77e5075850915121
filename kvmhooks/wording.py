"""Words of messages, and characters that may stand in them."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return ``1 disk``, ``2 disks``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def printable(text: str) -> str:
    r"""Return ``text`` with each character that cannot be seen as an escape; lines and tabs stay.

    A terminal obeys C0, C1 and what begins with ESC (ECMA-48, «Control functions»), and a
    bidirectional override shows a name in another order than it has (UAX #9). The escape is
    ``\u001b``, as in JSON and TOML, so that a document of theirs stays one: ``json.dumps`` leaves
    DEL as it is.
    """
    lines = text.split("\n")
    return "\n".join(line if line.isprintable() else _escaped(line) for line in lines)


def _escaped(line: str) -> str:
    return "".join(
        char
        if char.isprintable() or char == "\t"
        else f"\\u{ord(char):04x}"
        if ord(char) <= 0xFFFF
        else f"\\U{ord(char):08x}"
        for char in line
    )
