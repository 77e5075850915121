"""A command's standard output and standard error: nothing that a terminal obeys, no lost failure.

Names and words come from guests, files and other programs. So whatever is printed as text goes
through ``wording.printable``; a document that was asked for is printed as it is, but for a
terminal.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from kvmhooks.errors import OutputError
from kvmhooks.wording import printable

NAMES: Final = {"stdout": "standard output", "stderr": "standard error"}


class Plain(io.TextIOWrapper):
    """Text for a person, written to the binary stream ``buffer``.

    A failure to write raises ``OutputError``, and ``BrokenPipeError`` where nobody reads; on
    standard error there is nobody left to tell, and a command goes on without it.
    """

    def __init__(self, buffer: Any, what: str, *, encoding: str, by_line: bool) -> None:
        super().__init__(buffer, encoding, "backslashreplace", line_buffering=by_line)
        self.what: Final = what
        """The name that it has in messages."""

    def write(self, text: str) -> int:
        """Write ``text`` without control characters."""
        with self._told():
            super().write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Write what is still in a buffer."""
        with self._told():
            super().flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with told(self.what):
                yield
        except (OutputError, BrokenPipeError):
            if self.what != NAMES["stderr"]:
                raise


@contextmanager
def plain() -> Iterator[None]:
    """Have standard output and standard error be ``Plain`` while the context lasts."""
    fill()
    before = sys.stdout, sys.stderr
    made: list[Plain] = []
    for name in NAMES:
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, Plain):
            stream.flush()
            made.append(_over(stream, NAMES[name]))
            setattr(sys, name, made[-1])
    try:
        yield
    finally:
        for each in made:
            _end(each)
        sys.stdout, sys.stderr = before


def document(content: str | bytes) -> None:
    """Print a document that was asked for: as it is, but to a terminal what can be seen of it.

    Raises ``OutputError``.
    """
    if sys.stdout.isatty():
        text = content if isinstance(content, str) else content.decode(errors="surrogateescape")
        sys.stdout.write(printable(text))
        return
    sys.stdout.flush()
    with told(NAMES["stdout"]):
        data = content if isinstance(content, bytes) else content.encode(errors="surrogateescape")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@contextmanager
def told(what: str) -> Iterator[None]:
    """Have a failed write to ``what`` be an ``OutputError``; a broken pipe stays one."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"{what}: {error.strerror}") from error


def _over(stream: io.TextIOWrapper, what: str) -> Plain:
    return Plain(
        stream.buffer,
        what,
        encoding=stream.encoding,
        by_line=stream.line_buffering or stream.write_through,
    )


def _end(stream: Plain) -> None:
    """Leave the stream below as it was; what is still in its buffer must not fail once more."""
    try:
        io.TextIOWrapper.flush(stream)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    stream.detach()


def fill() -> None:
    """Open what was closed when we were started, so that no other file gets its number.

    Nothing comes from such an input, and every write to such an output fails, as to a descriptor
    that is closed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
            stream: TextIO = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
