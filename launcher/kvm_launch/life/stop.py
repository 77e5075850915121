"""Requests to stop: signals and the time limit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kvmhooks.signals import held_back, noted

T = TypeVar("T")


def run_whole(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end; one of ``SIGNALS`` cancels it, and comes when the loop is closed.

    A handler that raises in the loop itself may leave it half stopped, as that of ``asyncio.run``
    does (asyncio.Runner), and closing it then fails.
    """
    task: asyncio.Task[T] | None = None

    def cancel(_: int) -> None:
        if task is not None and not task.done():
            task.get_loop().call_soon_threadsafe(task.cancel)

    with held_back(cancel), asyncio.Runner() as runner:
        task = runner.get_loop().create_task(main)
        return runner.get_loop().run_until_complete(task)


class Stop:
    """The requests that a VM stop: a signal of ``SIGNALS``, and the end of ``seconds``.

    ``grace`` is how long the guest has to power off after it was asked to, in seconds.
    """

    def __init__(self, seconds: float | None, grace: float) -> None:
        self._seconds = seconds
        self._grace = grace
        self._asked: asyncio.Queue[str] = asyncio.Queue()
        self.was_asked = False
        """The VM was asked to stop: it did not end by itself."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the context lasts."""
        loop = asyncio.get_running_loop()
        with noted(lambda number: loop.call_soon_threadsafe(self._ask, number)):
            yield

    def _ask(self, number: int) -> None:
        self._asked.put_nowait(signal.Signals(number).name)

    async def escalate(
        self,
        ended: asyncio.Future[None],
        *,
        ask: Callable[[], Awaitable[None]],
        force: Callable[[], Awaitable[None]],
    ) -> str | None:
        """Wait until the VM has ``ended``; None if it was not forced, else why it was.

        The first request is passed on with ``ask``: the power button. The next one, or the end of
        the time that a guest has to power off, is passed on with ``force``.
        """
        asked = await self._next(ended, self._seconds)
        if ended.done():
            return None
        self.was_asked = True
        await ask()
        await self._next(ended, self._grace)
        if ended.done():
            return None
        await force()
        await ended
        reason = asked or f"{self._seconds or 0:g} s were over"
        return f"{reason}, and the guest did not power off when it was asked to"

    async def is_asked_within(self, seconds: float) -> bool:
        """Wait so long where no VM runs; True at once when a signal comes."""
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self.listening():
            return await self._next(never, seconds) is not None

    async def _next(self, ended: asyncio.Future[None], seconds: float | None) -> str | None:
        """Return the next signal's name; None when ``ended`` or the end of the time came before."""
        asked = asyncio.ensure_future(self._asked.get())
        both: set[asyncio.Future[Any]] = {ended, asked}
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        asked.cancel()
        return None
