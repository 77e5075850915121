"""`migrate begin` and `restore begin`: libvirt takes what the hook prints as the domain's XML.

The pins in it are of another host, or of another time. A helper process, the interpreter in which
kvmhooks was installed, plans anew; it needs what the hook must not depend on. If anything goes
wrong, the answer is empty, which leaves the XML as it is. The XML holds secrets: nothing of it is
logged.
"""

from __future__ import annotations

import os
import select
import subprocess
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import IsolationError, KvmhooksError, words_of
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.claims.xml import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmhooks.isolate.registry.registry import Registry

LIMIT: Final = 8.0
"""Seconds that the helper has: libvirt holds the VM meanwhile."""

RESERVED: Final = 120.0
"""Seconds for which the CPUs of a new answer are kept: no hook tells that a migration failed."""


def answer(xml: bytes, registry: Registry, planner: Sequence[str]) -> bytes:
    """Return the domain's XML with pins for this host, or empty to keep it. Raises nothing."""
    system = registry.system
    name = "?"
    try:
        claim = read_claim(xml, system=system)
        if claim is None or not claim.exclusive or not planner:
            return b""
        name = claim.name
        root = () if system.is_real else ("--root", system.root)
        found = ask([*planner, "replan", "-", *root], xml, LIMIT)
        if not found:
            return b""
        fresh = read_claim(found, system=system)
        if fresh is None or fresh.on(claim.exclusive) != claim:
            raise IsolationError("the helper's answer is another VM, or asks for something else")
        registry.reserve(fresh, RESERVED)
    except (KvmhooksError, OSError, ValueError) as error:
        system.log(
            f"{name}: the pins stay as they are: {type(error).__name__}: {words_of(error)}",
            severity=4,
        )
        return b""
    system.log(f"{name}: its pins are {fresh.exclusive} here, instead of {claim.exclusive}")
    return found


def ask(words: Sequence[str], text: bytes, limit: float) -> bytes:
    """Return a program's output for a text, within ``limit`` seconds and ``MAX_BYTES``.

    Raises ``IsolationError`` for a program that fails, is late or says too much; its words on
    stderr are not passed on, since they may quote the text. Raises ``OSError`` when there is none.
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
    """Return all that it prints. Raises ``IsolationError``."""
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
