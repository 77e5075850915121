"""Times of things that are measured in turns, so that a busy moment hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def in_turns(subjects: Mapping[str, Callable[[], float | None]], rounds: int) -> dict[str, float]:
    """Return the best time in seconds of each subject: its result, or else how long it took."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, subject in subjects.items():
            started = time.perf_counter()
            result = subject()
            took = time.perf_counter() - started if result is None else result
            best[name] = min(took, best.get(name, took))
    return best


def show(best: Mapping[str, float], baseline: str) -> None:
    """Print each time and its ratio to the baseline's."""
    for name, seconds in best.items():
        ratio = seconds / best[baseline]
        print(f"{name:<44} {seconds * 1000:9.1f} ms  {ratio:6.2f} x {baseline}")
