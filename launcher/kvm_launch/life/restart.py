"""The decision to start a VM again that has ended, and when: pure."""

from __future__ import annotations

from typing import Final

from kvmhooks.spec.model import Run

SOON: Final = 60.0
"""A life shorter than this many seconds is a failure to get going: the wait doubles."""

MOST: Final = 300.0
"""Seconds that are waited at the most."""


def wait_of(
    policy: Run, *, exit_code: int, was_asked: bool, lasted: float, waited: float
) -> float | None:
    """Return seconds to wait before the next start; None when there is none.

    ``lasted`` is how long it lived, ``waited`` how long was waited before that; 0 the first time.
    """
    is_due = policy.restart == "always" or (policy.restart == "on-failure" and exit_code != 0)
    if was_asked or not is_due:
        return None
    if waited and lasted < SOON:
        return min(2 * waited, MOST)
    return min(float(policy.restart_delay), MOST)
