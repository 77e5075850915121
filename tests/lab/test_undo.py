"""After the last guest the whole host is as it was, on a real kernel.

The first guest that owns CPUs has systemd enable the cpuset controller, and systemd keeps it:
groups have files of CPU sets from then on, with all CPUs in them. The state to compare with is that
after such a guest.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from . import isolated

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.slow
"""Run with `python -m tests.lab test -- --slow` until all of issue 4 is there and proved."""

A, B = (6, 7), (4, 5)
CANARIES = "for cpus in 2 3 6 7; do systemd-run -q taskset -c $cpus sleep 3000; done"


@pytest.fixture
def warm(lab: Lab) -> Lab:
    """A lab on which a guest has run, and whose owner has then pinned tasks."""
    isolated.start(lab, "first", A)
    isolated.stop(lab, "first")
    lab.output(CANARIES)
    time.sleep(2)
    return lab


def left_behind(lab: Lab, before: object) -> list[str]:
    """What differs, but for a CPU set that has the possible mask where it had none."""
    time.sleep(2)
    found = before.diff(lab.snapshot())  # type: ignore[attr-defined]
    forced = "cpuset.cpus (requested): '' became '0-7'"
    assert lab.output("kvmhooks status") == "nothing is held"
    return [line for line in found if not line.endswith(forced)]


def test_one_guest_leaves_nothing(warm: Lab) -> None:
    """Its CPUs come back, and every pinned task has its own mask, whatever its kernel forgot."""
    before = warm.snapshot()
    isolated.start(warm, "a", A)
    isolated.stop(warm, "a")
    assert left_behind(warm, before) == []


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_two_guests_leave_nothing_in_either_order(warm: Lab, order: str) -> None:
    """And the one that remains stays alone meanwhile."""
    before = warm.snapshot()
    cpus = {"a": A, "b": B}
    for name in "ab":
        isolated.start(warm, name, cpus[name])
    isolated.stop(warm, order[0])
    measured = isolated.intruders(warm, order[1], cpus[order[1]], 3)
    assert (measured["user"], measured["device interrupts"]) == (0, 0), measured
    isolated.stop(warm, order[1])
    assert left_behind(warm, before) == []


def test_a_guest_that_is_killed_leaves_nothing(warm: Lab) -> None:
    """`kill -9` of QEMU: libvirt notices and calls the hook."""
    before = warm.snapshot()
    isolated.start(warm, "a", A)
    warm.output("kill -9 $(cat /run/libvirt/qemu/a.pid)")
    warm.output("while virsh -q domstate a; do sleep 0.5; done 2>/dev/null; true", seconds=60)
    assert left_behind(warm, before) == []


def test_an_administrators_mask_stays(warm: Lab) -> None:
    """Set while a guest lives: it is theirs, and ours to keep."""
    isolated.start(warm, "a", A)
    warm.output("echo 0-1 > /sys/fs/cgroup/init.scope/cpuset.cpus; echo 3 > "
                "/sys/devices/virtual/workqueue/cpumask")  # fmt: skip
    isolated.stop(warm, "a")
    assert warm.output("cat /sys/devices/virtual/workqueue/cpumask") == "03"


def test_libvirtd_restarts_in_between(warm: Lab) -> None:
    """The claim is adopted again, and given back by the new daemon's hook."""
    before = warm.snapshot()
    isolated.start(warm, "a", A)
    warm.output("systemctl restart libvirtd", seconds=60)
    warm.output("until virsh -q domstate a | grep -q running; do sleep 0.5; done", seconds=60)
    measured = isolated.intruders(warm, "a", A, 3)
    assert (measured["user"], measured["device interrupts"]) == (0, 0), measured
    isolated.stop(warm, "a")
    left = [line for line in left_behind(warm, before) if "libvirtd" not in line]
    assert left == []
