"""The difference between a domain and the tuned one, for people: no secret is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final, Literal, NamedTuple, TypeAlias

SECRETS: Final = re.compile(
    r"""(\b(?:passwd|password|secret|key)\s*=\s*)("[^"]*"|'[^']*')|"""
    r"""(-----BEGIN [^-]*-----)([^-]*(?:-(?!----)[^-]*)*)"""
)
"""Attributes that hold a password (``<graphics passwd=>``), and keys in text."""

_ARGUMENT: Final = re.compile(
    r"""(<(?:[^\s<>/:"']+:)?(?:arg|env)(?:\s+[^\s=<>"']+\s*=\s*(?:"[^"]*"|'[^']*'))*?"""
    r"""\s+value\s*=\s*)("[^"]*"|'[^']*')"""
)
"""QEMU's own arguments and environment: anything may stand there."""

HIDDEN: Final = "********"

CONTEXT: Final = 3
"""Lines that are shown before and after a change."""

COMPARED: Final = 10_000
"""Changed lines are compared with each other if no more pairs of them are there than this."""

Opcode: TypeAlias = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]
"""An operation of ``difflib``: what is done, the lines before, the lines after."""

Pieces: TypeAlias = Sequence[tuple[str, str]]
"""A text in pieces, each as it was and as it is now; most are the same."""


def hide(text: str) -> str:
    """Return the text with every secret replaced; it keeps its number of lines."""

    def masked(found: re.Match[str]) -> str:
        if found[1] is None:
            return f"{found[3]}{_stars(found[4])}"
        return _quoted(found)

    return _ARGUMENT.sub(_quoted, SECRETS.sub(masked, text))


def _quoted(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2][0]}{_stars(found[2])}{found[2][0]}"


def _stars(secret: str) -> str:
    return "\n".join([HIDDEN] * (secret.count("\n") + 1))


class _Block(NamedTuple):
    """Lines that are different: from and to (exclusive) before, and the same after."""

    old: int
    old_end: int
    new: int
    new_end: int


class _Known(SequenceMatcher[str]):
    """Groups opcodes that are known already."""

    def __init__(self, opcodes: list[Opcode]) -> None:
        super().__init__()
        self._known = opcodes

    def get_opcodes(self) -> list[Opcode]:
        return self._known


def unified(pieces: Pieces, name: str) -> str:
    """Return the unified diff of a text that was changed in places, secrets hidden in both.

    The places are known, so nothing is compared that has not changed: ``difflib`` takes the square
    of the number of changes.
    """
    before, after = (_lines(hide("".join(text))) for text in zip(*pieces, strict=True))
    matcher = _Known(list(_opcodes(_blocks(pieces), before, after)))
    lines = [f"--- {name}", f"+++ {name} (tuned)"]
    for group in matcher.get_grouped_opcodes(CONTEXT):
        (_, old, _, new, _), (_, _, old_end, _, new_end) = group[0], group[-1]
        lines.append(f"@@ -{_range(old, old_end)} +{_range(new, new_end)} @@")
        for tag, old, old_end, new, new_end in group:
            if tag == "equal":
                lines += (f" {line}" for line in before[old:old_end])
                continue
            lines += (f"-{line}" for line in before[old:old_end])
            lines += (f"+{line}" for line in after[new:new_end])
    return "".join(f"{line}\n" for line in lines) if len(lines) > 2 else ""


def _blocks(pieces: Pieces) -> Iterator[_Block]:
    """Yield the lines that the changed pieces touch; those that meet are one block."""
    last: _Block | None = None
    old = new = 0
    for was, now in pieces:
        old_end, new_end = old + was.count("\n"), new + now.count("\n")
        if was != now:
            block = _Block(old, old_end + 1, new, new_end + 1)
            if last is not None and old <= last.old_end:
                last = last._replace(old_end=block.old_end, new_end=block.new_end)
            else:
                if last is not None:
                    yield last
                last = block
        old, new = old_end, new_end
    if last is not None:
        yield last


def _opcodes(
    blocks: Iterable[_Block], before: Sequence[str], after: Sequence[str]
) -> Iterator[Opcode]:
    """Yield blocks as ``difflib`` has them, without the lines at their ends that are the same."""
    done_old = done_new = 0
    for block in blocks:  # one that ends the text may count the empty line behind it
        old, old_end = block.old, min(block.old_end, len(before))
        new, new_end = block.new, min(block.new_end, len(after))
        while old < old_end and new < new_end and before[old] == after[new]:
            old, new = old + 1, new + 1
        while old < old_end and new < new_end and before[old_end - 1] == after[new_end - 1]:
            old_end, new_end = old_end - 1, new_end - 1
        if old == old_end and new == new_end:
            continue
        if done_old < old:
            yield "equal", done_old, old, done_new, new
        yield from _compared(before[old:old_end], after[new:new_end], old, new)
        done_old, done_new = old_end, new_end
    if done_old < len(before):
        yield "equal", done_old, len(before), done_new, len(after)


def _compared(before: Sequence[str], after: Sequence[str], old: int, new: int) -> Iterator[Opcode]:
    """Yield what differs between some lines, the first of which have these numbers."""
    if len(before) * len(after) > COMPARED:
        yield "replace", old, old + len(before), new, new + len(after)
        return
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        yield tag, old + old_start, old + old_end, new + new_start, new + new_end


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def _range(start: int, end: int) -> str:
    """Write lines as diff does: counted from 1, an empty range by the line before it."""
    count = end - start
    return f"{start + 1}" if count == 1 else f"{start + bool(count)},{count}"
