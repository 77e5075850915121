"""A VM's life: what may follow what, and what QEMU's events make of it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_launch.talk.events import Watch
from kvm_launch.tell.states import AFTER, Life, Step, VmState
from kvmhooks.qemu.events import EventQueue

SHUTDOWN = {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}}
FULL = {
    "event": "BLOCK_IO_ERROR",
    "data": {"operation": "write", "node-name": "disk0", "action": "stop", "nospace": True,
             "reason": "No space left on device"},
}  # fmt: skip
EVENTS = [
    *({"event": name} for name in ("RESUME", "STOP", "RESET", "POWERDOWN", "VSERPORT_CHANGE")),
    *({"event": "WATCHDOG", "data": {"action": action}} for action in ("reset", "poweroff")),
    {"event": "GUEST_PANICKED", "data": {"action": "pause"}},
    SHUTDOWN,
    FULL,
]


def life_of(*events: dict[str, Any]) -> tuple[list[str], Watch]:
    """Return what is told of a VM that was started and has these events."""
    told: list[str] = []
    life = Life(lambda step: told.append(str(step)), clock=lambda: 0)
    for state in (VmState.PLANNED, VmState.STARTING, VmState.PAUSED):
        life.enter(state)
    watch = Watch(life)
    for event in events:
        watch.handle(event)
    return told[3:], watch


@pytest.mark.parametrize(
    ("events", "told", "reason"),
    [
        ([{"event": "RESUME"}, SHUTDOWN], ["running", "shutting down: guest-shutdown"],
         "guest-shutdown"),
        ([{"event": "RESUME"}, FULL, {"event": "STOP"}, {"event": "RESUME"}],
         ["running", "running: write error of disk0: no space left",
          "paused: write error of disk0: no space left", "running"], "unknown"),
        ([{"event": "RESUME"}, {"event": "STOP"}, SHUTDOWN],
         ["running", "paused: QEMU stopped it", "shutting down: guest-shutdown"],
         "guest-shutdown"),
        ([{"event": "RESUME"}, *[{"event": "RESET"}] * 500],
         ["running", "running: the guest reset"], "unknown"),
        ([{"event": "RESUME"}, *[FULL | {"data": {"operation": "x" * 999}}] * 500],
         ["running", f"running: {'x' * 300} error of None: None"], "unknown"),
        ([{"event": "RESUME"}, {"event": "WATCHDOG", "data": {"action": "poweroff"}}],
         ["running", "running: the watchdog barked: poweroff"], "watchdog"),
    ],
)  # fmt: skip
def test_events_become_steps(events: list[dict[str, Any]], told: list[str], reason: str) -> None:
    """A disk that is full pauses the VM and says so; a storm of resets is one line."""
    messages, watch = life_of(*events)
    assert (messages, watch.reason) == (told, reason)


def test_a_storm_of_states_is_paced() -> None:
    """Some of them are told; what came last holds."""
    told: list[Step] = []
    life = Life(told.append)
    for state in (VmState.PLANNED, VmState.STARTING, VmState.PAUSED):
        life.enter(state)

    class Qemu(EventQueue):
        next_event = EventQueue.get

    async def story() -> None:
        events: Any = Qemu()
        following = asyncio.ensure_future(Watch(life).follow(events))
        for number in range(3000):
            events.put({"event": ("RESUME", "STOP")[number % 2]}, 30)
            await asyncio.sleep(0)
        events.put({"event": "RESUME"}, 30)
        await asyncio.sleep(0.5)
        following.cancel()

    asyncio.run(story())
    assert len(told) < 1500
    assert life.state is VmState.RUNNING


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_no_order_of_events_breaks_the_rules(events: list[dict[str, Any]]) -> None:
    """Each state may follow the one before, whatever QEMU says in whatever order."""
    life = Life(lambda _: None)
    for state in (VmState.PLANNED, VmState.CLAIMED, VmState.STARTING, VmState.PAUSED):
        life.enter(state)
    watch = Watch(life)
    for event in events:
        watch.handle(event)
    watch.asked()
    life.enter(VmState.ENDED)
    for before, other in itertools.pairwise(step.state for step in life.steps):
        assert other is VmState.ENDED or other in AFTER[before]


def test_a_state_out_of_order_is_a_mistake_of_ours() -> None:
    """A VM that is not paused has no vCPU to let run."""
    life = Life(lambda _: None, clock=lambda: 7)
    life.enter(VmState.PLANNED)
    with pytest.raises(AssertionError, match="planned -> running"):
        life.enter(VmState.RUNNING)
    assert life.steps == [Step(VmState.PLANNED, "", 7)]


def test_a_reason_is_one_line_that_no_terminal_obeys() -> None:
    """A newline in an event would make a second line of `status`, and of the log."""
    told: list[str] = []
    life = Life(lambda step: told.append(step.why))
    life.enter(VmState.PLANNED, "a\nb\tc")
    life.report("d\r\n\x1b[2J")
    assert told == ["a b c", "d\\u000d \\u001b[2J"]
