"""While a guest owns CPUs 6 and 7, nothing else runs there, on a real kernel and under load."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from . import isolated

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.slow
"""Run with `python -m tests.lab test -- --slow` until all of issue 4 is there and proved."""

CPUS = (6, 7)
SECONDS = 10.0


def test_nothing_but_the_guest_runs_on_its_cpus(lab: Lab) -> None:
    """Zero user tasks and zero device interrupts, where there were many without; also after a
    daemon-reload."""
    lab.output(isolated.LOAD)
    time.sleep(2)
    isolated.start(lab, "plain", CPUS, policy="")
    without = isolated.intruders(lab, "plain", CPUS, SECONDS)
    isolated.stop(lab, "plain")
    isolated.start(lab, "own", CPUS)
    during = isolated.intruders(lab, "own", CPUS, SECONDS)
    lab.output("systemctl daemon-reload", seconds=60)
    after = isolated.intruders(lab, "own", CPUS, SECONDS)
    print(f"{lab.variant.name}: without {without}, with {during}, after daemon-reload {after}")
    assert without["user"] + without["unknown"] > 0
    for measured in (during, after):
        assert (measured["user"], measured["device interrupts"]) == (0, 0), measured
