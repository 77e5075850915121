"""The keys that are typed at kvm-launch's own terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import sys

import pytest

from kvm_launch.talk.terminal import typed


def test_a_terminal_that_is_closed_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ready to read for ever, and every read fails."""
    ours, theirs = pty.openpty()
    keys: list[bytes] = []

    async def is_read_once_closed() -> bool:
        came = asyncio.Event()

        def type_key(key: bytes) -> None:
            keys.append(key)
            came.set()

        with typed(type_key):
            os.write(ours, b"ab")
            await came.wait()
            os.close(ours)
            await asyncio.sleep(0.1)
            return asyncio.get_running_loop().remove_reader(theirs)

    with os.fdopen(theirs, "rb", buffering=0) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert not asyncio.run(is_read_once_closed())
    assert b"".join(keys) == b"ab"
