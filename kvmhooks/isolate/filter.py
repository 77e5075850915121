"""`migrate begin` and `restore begin`: libvirt takes what the hook prints as the domain's XML.

The pins in it are of another host, or of another time. A helper process, the interpreter in which
kvmhooks was installed, plans anew; it needs what the hook must not depend on. Whatever goes wrong,
the answer is empty, which leaves the XML as it is. The XML holds secrets: nothing of it is logged.
"""

from __future__ import annotations

import os
import select
import subprocess
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import IsolationError, KvmhooksError
from kvmhooks.isolate.domain import read_claim
from kvmhooks.isolate.markup import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmhooks.isolate.keeper import Keeper

LIMIT: Final = 8.0
"""Seconds that the helper has: libvirt holds the VM meanwhile."""

RESERVED: Final = 120.0
"""Seconds for which the CPUs of a new answer are kept: no hook tells that a migration failed."""


def answer(xml: bytes, keeper: Keeper, planner: Sequence[str]) -> bytes:
    """The domain's XML with pins for this host; empty when it stays as it is. Raises nothing."""
    door = keeper.door
    name = "?"
    try:
        claim = read_claim(xml, door=door)
        if claim is None or not claim.exclusive or not planner:
            return b""
        name = claim.name
        root = () if door.is_real else ("--root", door.root)
        found = ask([*planner, "replan", "-", *root], xml, LIMIT)
        if not found:
            return b""
        fresh = read_claim(found, door=door)
        if fresh is None or fresh.on(claim.exclusive) != claim:
            raise IsolationError("the helper's answer is another VM, or asks for something else")
        keeper.reserve(fresh, RESERVED)
    except (KvmhooksError, OSError, ValueError) as error:
        door.log(f"{name}: the pins stay as they are: {type(error).__name__}: {error}", severity=4)
        return b""
    door.log(f"{name}: its pins are {fresh.exclusive} here, instead of {claim.exclusive}")
    return found


def ask(words: Sequence[str], text: bytes, limit: float) -> bytes:
    """What a program prints for a text, within ``limit`` seconds and ``MAX_BYTES``.

    Raises ``IsolationError`` for a program that fails, is late or says too much; what it says on
    stderr is not passed on, since it may quote the text. Raises ``OSError`` when there is none.
    """
    source = os.memfd_create("xml", os.MFD_CLOEXEC)
    try:
        while text:
            text = text[os.write(source, text) :]
        os.lseek(source, 0, os.SEEK_SET)
        helper = subprocess.Popen(
            words, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
            env={}, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(source)
    with helper:
        try:
            found = _read(helper, limit)
            code = helper.wait(1)
        except (IsolationError, subprocess.TimeoutExpired) as error:
            raise IsolationError(f"the helper: {error}") from None
        finally:
            helper.kill()
    if code:
        raise IsolationError(f"the helper: it ended with {code}; run `kvmhooks tune` by hand")
    return found


def _read(helper: subprocess.Popen[bytes], limit: float) -> bytes:
    """All that it prints. Raises ``IsolationError``."""
    import time  # noqa: PLC0415 -- as the rest of this module, for few calls

    until = time.monotonic() + limit
    assert helper.stdout is not None
    found = b""
    while True:
        ready, _, _ = select.select([helper.stdout], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise IsolationError(f"no answer within {limit:.0f} s")
        part = os.read(helper.stdout.fileno(), 1 << 16)
        if not part:
            return found
        found += part
        if len(found) > MAX_BYTES:
            raise IsolationError(f"an answer of more than {MAX_BYTES} bytes")
