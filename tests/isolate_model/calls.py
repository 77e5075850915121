"""Calls of the hook in a process of their own, with standard files of its own; it may hang."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, NamedTuple

from kvmhooks.isolate.hook import entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HUNG = -1
"""The code of a call that did not end in time."""

ESCAPED = 99
"""The code of a call from which an exception came out."""


class Outcome(NamedTuple):
    """The end of a call."""

    words: list[str]
    code: int
    printed: str
    stderr: str
    seconds: float


class Calls:
    """Calls that are under way, one after the other, in a process that is given so long."""

    def __init__(
        self,
        root: Path,
        calls: Sequence[tuple[list[str], bytes]],
        enter: Callable[[], object] | None = None,
        seconds: int = 60,
    ) -> None:
        self._words = [words for words, _ in calls]
        reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _run(root, calls, enter, seconds, writer)
        os.close(writer)
        self._reader = reader

    def outcomes(self) -> list[Outcome]:
        """Wait for them; those that were not come to count as hung."""
        with os.fdopen(self._reader) as file:
            found = [Outcome(*json.loads(line)) for line in file]
        os.waitpid(self._pid, 0)
        left = self._words[len(found) :]
        return found + [Outcome(words, HUNG, "", "", 0) for words in left]


def _run(
    root: Path,
    calls: Sequence[tuple[list[str], bytes]],
    enter: Callable[[], object] | None,
    seconds: int,
    writer: int,
) -> None:
    """Make the calls, and end this process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        files = [[_file(xml), _file(), _file()] for _, xml in calls]
        if enter is not None:
            enter()
        for (words, _), three in zip(calls, files, strict=True):
            line = json.dumps(_call(root, words, three)) + "\n"
            os.write(writer, line.encode())
    finally:
        os._exit(0)


def _file(text: bytes = b"") -> int:
    file = os.memfd_create("standard")
    os.write(file, text)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _call(root: Path, words: list[str], three: list[int]) -> Outcome:
    for number, file in enumerate(three):
        os.dup2(file, number)
        os.close(file)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    begun = time.monotonic()
    try:
        code = entry.command(["--root", str(root), *words])
    except BaseException:  # noqa: BLE001 -- that none comes out is what is tested
        traceback.print_exc()
        code = ESCAPED
    took = time.monotonic() - begun
    printed, stderr = (os.pread(number, 4_096, 0).decode(errors="replace") for number in (1, 2))
    return Outcome(words, code, printed, stderr, took)
