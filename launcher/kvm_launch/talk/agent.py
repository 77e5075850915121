"""The answer of the guest's agent (qemu-ga(8)): with it the guest is not only running, but up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from pathlib import Path
from typing import Final

RETRY_SECONDS: Final = 1.0
"""An agent that is not there yet reads nothing: it is asked again."""


async def answered(path: Path) -> None:
    """Return once the agent behind the socket ``path`` answers; there is no end to the waiting.

    It is asked with ``guest-sync`` (qga/qapi-schema.json), which does nothing, and let go of then:
    QEMU has one connection for it.
    """
    for number in itertools.count(1):
        with contextlib.suppress(OSError, ValueError, RecursionError, TimeoutError):
            async with asyncio.timeout(2 * RETRY_SECONDS):
                if await _is_answered(path, number):
                    return
        await asyncio.sleep(RETRY_SECONDS)


async def _is_answered(path: Path, number: int) -> bool:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        request = {"execute": "guest-sync", "arguments": {"id": number}}
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        while line := await reader.readline():  # answers to what was asked before, too
            document = json.loads(line)
            if isinstance(document, dict) and document.get("return") == number:
                return True
        return False
    finally:
        writer.close()
