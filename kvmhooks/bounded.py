"""Programs that are run for their answer: it ends within a time, and has no more than some bytes.

Another user's program, or one that became another user, may be in that user's hand: what it prints
is taken in parts and given up as soon as it is too much.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from typing import Any, Final, NamedTuple

MOST: Final = 4 << 20
"""Bytes of an answer: what QEMU says of its devices takes some hundred KiB."""

MOST_WORDS: Final = 64 << 10
"""Bytes on standard error."""

_CHUNK: Final = 1 << 16


class Dialogue(NamedTuple):
    """Words for a program in two parts: the last are for when it has answered the first."""

    first: bytes
    sign: bytes = b""
    """It has answered when it has printed a line with this."""
    last: bytes = b""


def run(
    words: Sequence[str | PathLike[str]],
    *,
    seconds: float,
    most: int = MOST,
    data: bytes | Dialogue = b"",
    who: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a program that hears ``data``, and return its exit status and its output.

    It runs in ``/``, in a session of its own: a terminal's Ctrl-C leaves it alone. ``who`` are the
    ids as ``Popen`` takes them. Raises ``OSError`` for a program that cannot be run, that has not
    ended within ``seconds`` (ETIMEDOUT), or that prints more than ``most`` bytes, or more than
    ``MOST_WORDS`` on standard error (EFBIG): it is killed then, with its process group.
    """
    until = time.monotonic() + seconds
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
        env=environment, pass_fds=descriptors, start_new_session=True, **(who or {}),
    ) as process:  # fmt: skip
        try:
            whole = data if isinstance(data, Dialogue) else Dialogue(data)
            out, err = _talk(process, whole, most, until)
            process.wait(max(0.0, until - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer in {seconds:g} s") from error
        finally:
            _kill(process)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _talk(
    process: subprocess.Popen[bytes], data: Dialogue, most: int, until: float
) -> tuple[bytes, bytes]:
    """Say all of ``data``, and return all that is printed. Raises ``OSError`` beyond a bound."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    out, err, left, last = bytearray(), bytearray(), memoryview(data.first), data.last
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE, None)
        selector.register(process.stdout, selectors.EVENT_READ, (out, most, "output"))
        selector.register(process.stderr, selectors.EVENT_READ, (err, MOST_WORDS, "error"))
        for stream in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(stream.fileno(), False)
        while selector.get_map():
            for key, _ in selector.select(_remaining(until)):
                if key.data is None:
                    left = left[_written(key.fd, left) :]
                    if not left:
                        selector.unregister(key.fd)
                        if not last:
                            process.stdin.close()
                elif not _read(key.fd, *key.data):
                    selector.unregister(key.fd)
            if last and _has_line(out, data.sign):
                if not left:
                    selector.register(process.stdin, selectors.EVENT_WRITE, None)
                left, last = memoryview(bytes(left) + last), b""
    return bytes(out), bytes(err)


def _remaining(until: float) -> float:
    """Return the seconds that remain. Raises ``TimeoutError`` if there are none."""
    remaining = until - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _read(descriptor: int, found: bytearray, limit: int, name: str) -> bool:
    """Read a part into ``found``; tell whether there may be more. Raises ``OSError`` (EFBIG)."""
    part = os.read(descriptor, _CHUNK)
    found += part
    if len(found) > limit:
        raise OSError(errno.EFBIG, f"more than {limit} bytes on its standard {name}")
    return bool(part)


def _has_line(out: bytearray, sign: bytes) -> bool:
    """Tell whether a line with ``sign`` has been printed to its end."""
    found = out.find(sign)
    return found >= 0 and out.find(b"\n", found) >= 0


def _written(descriptor: int, left: memoryview) -> int:
    """Write what fits; return how many bytes are done with: all, where nobody reads any more."""
    try:
        return os.write(descriptor, left[:_CHUNK])
    except BrokenPipeError:
        return len(left)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and its group, unless it was waited for: the number is its own till then."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
