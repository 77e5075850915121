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
from typing import Any, Final

MOST: Final = 4 << 20
"""Bytes of an answer: what QEMU says of its devices takes some hundred KiB."""

MOST_WORDS: Final = 64 << 10
"""Bytes on standard error."""

_CHUNK: Final = 1 << 16


def run(
    words: Sequence[str | PathLike[str]],
    *,
    seconds: float,
    most: int = MOST,
    said: bytes = b"",
    who: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a program that hears ``said``, and return its exit status and its output.

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
            out, err = _talk(process, said, most, until)
            process.wait(max(0.0, until - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer in {seconds:g} s") from error
        finally:
            _kill(process)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _talk(
    process: subprocess.Popen[bytes], said: bytes, most: int, until: float
) -> tuple[bytes, bytes]:
    """Write ``said``, and return all that is printed. Raises ``OSError`` beyond a bound."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    out, err, left = bytearray(), bytearray(), memoryview(said)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE, None)
        selector.register(process.stdout, selectors.EVENT_READ, (out, most, "output"))
        selector.register(process.stderr, selectors.EVENT_READ, (err, MOST_WORDS, "error"))
        for stream in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(stream.fileno(), False)
        while selector.get_map():
            remaining = until - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            for key, _ in selector.select(remaining):
                if key.data is None:
                    left = left[_written(key.fd, left) :]
                    if not left:
                        selector.unregister(key.fd)
                        process.stdin.close()
                    continue
                part = os.read(key.fd, _CHUNK)
                if not part:
                    selector.unregister(key.fd)
                found, limit, name = key.data
                found += part
                if len(found) > limit:
                    said_too_much = f"more than {limit} bytes on its standard {name}"
                    raise OSError(errno.EFBIG, said_too_much)
    return bytes(out), bytes(err)


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
