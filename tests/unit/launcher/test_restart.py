"""The start of a VM that has ended, once more."""

from __future__ import annotations

import pytest

from kvm_launch.life.restart import MOST, SOON, wait_of
from kvmhooks.spec.model import Run


@pytest.mark.parametrize(
    ("policy", "exit_code", "was_asked", "is_due"),
    [
        ("never", 3, False, False),
        ("on-failure", 0, False, False),
        ("on-failure", 3, False, True),
        ("on-failure", 4, False, True),
        ("on-failure", 3, True, False),
        ("always", 0, False, True),
        ("always", 3, False, True),
        ("always", 0, True, False),
    ],
)
def test_who_is_started_again(
    policy: str, exit_code: int, *, was_asked: bool, is_due: bool
) -> None:
    """By the policy; never a VM that was asked to stop."""
    wait = wait_of(
        Run(restart=policy, restart_delay=7),  # type: ignore[arg-type]
        exit_code=exit_code,
        was_asked=was_asked,
        lasted=0,
        waited=0,
    )
    assert wait == (7 if is_due else None)


def test_the_wait_doubles_until_a_life_lasts() -> None:
    """1, 2, 4 … 300 seconds while it comes to nothing; 1 again after a life of a minute."""
    waits, waited = [], 0.0
    for lasted in (1.0,) * 11 + (SOON, 1.0):
        wait = wait_of(Run(restart="always"), exit_code=0, was_asked=False, lasted=lasted,
                       waited=waited)  # fmt: skip
        assert wait is not None
        waits.append(wait)
        waited = wait
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, MOST, MOST, 1, 2]
