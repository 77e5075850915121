"""Sockets of this host (unix(7)) that somebody else serves."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

_POLL_SECONDS: Final = 0.1


async def connected(path: Path) -> socket.socket:
    """Return a socket that is connected to ``path``; wait while the queue there is full.

    ``connect()`` of a socket that does not block says EAGAIN then (unix(7)), which asyncio takes
    for a connection under way. There is no end to the waiting. Raises ``OSError``.
    """
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.setblocking(False)
        while True:
            try:
                peer.connect(str(path))
            except BlockingIOError:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return peer
    except BaseException:
        peer.close()
        raise
