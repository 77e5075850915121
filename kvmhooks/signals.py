"""The signals that ask for the end, kept out of steps that are whole or not taken.

Python runs a handler between any two instructions of the main thread, and ours raise
``KeyboardInterrupt``: one that comes while a directory is removed would leave half of it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    *(() if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)),
)
"""Signals that ask for the end; a closed terminal does, unless it was started with nohup(1)."""


def interrupt() -> None:
    """Have each of ``SIGNALS`` raise ``KeyboardInterrupt`` from now on."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


def _nothing(_: int) -> None:
    """Do no more than take note."""


@contextmanager
def noted(then: Callable[[int], object] = _nothing) -> Iterator[list[int]]:
    """Take note of ``SIGNALS`` only, while the context lasts: the list has those that came.

    ``then`` is called with each. The handlers of before handle them again afterwards.
    """
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _: object) -> None:
        came.append(number)
        then(number)

    try:
        # Handlers run in the main thread only: no other is ever interrupted.
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            before[number] = signal.getsignal(number)
            signal.signal(number, note)
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back(then: Callable[[int], object] = _nothing) -> Iterator[list[int]]:
    """Have ``SIGNALS`` come when the context has ended, not before.

    The list has those that are to come; ``then`` is called with each at once.
    """
    came: list[int] = []
    try:
        with noted(then) as came:
            yield came
    finally:
        if came:
            signal.raise_signal(came[0])
