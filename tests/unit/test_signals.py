"""Signals that ask for the end come after a step, not in it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from kvmhooks.signals import SIGNALS, held_back, noted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Each raises ``KeyboardInterrupt``, as in kvm-launch; put back after the test."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def step(number: signal.Signals, done: list[str], *, fails: bool = False) -> None:
    """Take a step in whose middle a signal comes."""
    with held_back(lambda _: done.append("told")):
        os.kill(os.getpid(), number)
        done.append("all of it")
        if fails:
            raise ValueError


@pytest.mark.parametrize("number", SIGNALS)
def test_one_that_is_held_back_comes_at_the_end(number: signal.Signals) -> None:
    """The step is taken as a whole, and is told of the signal at once."""
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        step(number, done)
    assert done == ["told", "all of it"]
    assert {signal.getsignal(each) for each in SIGNALS} == {signal.default_int_handler}


def test_one_that_is_held_back_is_not_lost_in_an_error() -> None:
    """One who tries again after the error has to know that nobody wants it any more."""
    with pytest.raises(KeyboardInterrupt) as raised:
        step(signal.SIGTERM, [], fails=True)
    assert isinstance(raised.value.__context__, ValueError)


def test_one_that_is_noted_does_not_come() -> None:
    """It is in the list, and the next one comes."""
    with noted() as came:
        os.kill(os.getpid(), signal.SIGTERM)
    assert came == [signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_steps_may_have_steps() -> None:
    """It comes when the outer one has ended."""
    done: list[str] = []

    def steps() -> None:
        with held_back():
            step(signal.SIGINT, done)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert done == ["told", "all of it", "the rest"]


def test_another_thread_is_never_interrupted() -> None:
    """It cannot have handlers, and needs none (signal(3) of Python's library)."""
    done = []

    def step() -> None:
        with held_back():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]
