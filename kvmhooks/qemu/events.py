"""QEMU's events until somebody takes them: no more than fit, whatever QEMU says."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

MOST: Final = 1000
"""The number of events that wait at most."""

MOST_BYTES: Final = 1 << 20
"""The length of those that wait, together, at most."""

EVENT_BYTES: Final = 1 << 16
"""No event of QEMU's is as long: their members are names, numbers and paths (qapi/)."""

KEPT: Final = frozenset({"GUEST_PANICKED", "RESUME", "SHUTDOWN", "STOP", "WATCHDOG"})
"""Events that a VM's life follows. The latest of each waits, and no earlier one."""


class EventQueue:
    """A queue that drops the oldest when it is full, but the latest of each of ``KEPT`` never."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[dict[str, Any], int]] = deque()
        self._bytes = 0
        self._are_there = asyncio.Event()
        self.dropped = 0
        """The number of those that nobody will see."""

    def put(self, event: dict[str, Any], length: int) -> None:
        """Add an event that QEMU needed ``length`` bytes for."""
        if length > EVENT_BYTES:
            self.dropped += 1
            return
        if event["event"] in KEPT:
            self._drop(lambda kind: kind == event["event"])
        self._waiting.append((event, length))
        self._bytes += length
        while len(self._waiting) > MOST or self._bytes > MOST_BYTES:
            self._drop(lambda kind: kind not in KEPT)
        self._are_there.set()

    async def get(self) -> dict[str, Any]:
        """Wait for the oldest event, and take it."""
        while not self._waiting:
            self._are_there.clear()
            await self._are_there.wait()
        return self._take()

    def take_all(self) -> list[dict[str, Any]]:
        """Take all that are there."""
        return [self._take() for _ in range(len(self._waiting))]

    def _take(self, at: int = 0) -> dict[str, Any]:
        event, length = self._waiting[at]
        del self._waiting[at]
        self._bytes -= length
        return event

    def _drop(self, may_go: Callable[[str], bool]) -> None:
        """Drop the oldest of a kind that may go; those of ``KEPT`` alone are few, and fit."""
        for at, (event, _) in enumerate(self._waiting):
            if may_go(event["event"]):
                self._take(at)
                self.dropped += 1
                break
