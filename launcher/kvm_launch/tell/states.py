"""A VM's life: the states that it goes through, and which may follow which."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import Final

from attrs import frozen

from kvmhooks.wording import printable


class VmState(enum.StrEnum):
    """The states of a VM's life."""

    PLANNED = "planned"
    CLAIMED = "claimed"
    """The VM has its own what it asks of the host."""
    STARTING = "starting"
    """Its QEMU is being started."""
    PAUSED = "paused"
    """Its vCPUs stand still: before the first instruction, or since QEMU stopped them."""
    RUNNING = "running"
    SHUTTING_DOWN = "shutting down"
    """It was asked to power off, or does so by itself."""
    ENDED = "ended"
    """Its QEMU is gone."""


AFTER: Final[Mapping[VmState, frozenset[VmState]]] = {
    VmState.PLANNED: frozenset({VmState.CLAIMED, VmState.STARTING}),
    VmState.CLAIMED: frozenset({VmState.STARTING}),
    VmState.STARTING: frozenset({VmState.PAUSED}),
    VmState.PAUSED: frozenset({VmState.RUNNING, VmState.SHUTTING_DOWN}),
    VmState.RUNNING: frozenset({VmState.PAUSED, VmState.SHUTTING_DOWN}),
    VmState.SHUTTING_DOWN: frozenset({VmState.PAUSED, VmState.RUNNING}),
    VmState.ENDED: frozenset({VmState.PLANNED}),
}
"""The states that may follow each; the end may come after any, and a restart after the end."""


@frozen
class Step:
    """A state that was reached."""

    state: VmState
    why: str
    at: float
    """Seconds since 1970."""

    def __str__(self) -> str:
        return f"{self.state}: {self.why}" if self.why else str(self.state)


class Life:
    """The steps of one VM; ``tell`` is called with each."""

    def __init__(
        self, tell: Callable[[Step], None], clock: Callable[[], float] = time.time
    ) -> None:
        self.steps: list[Step] = []
        self._tell = tell
        self._clock = clock

    @property
    def state(self) -> VmState:
        """The state that it is in now; what never began has ended."""
        return self.steps[-1].state if self.steps else VmState.ENDED

    def enter(self, state: VmState, why: str = "") -> None:
        """Go on to a state; being there already is no step."""
        if state is self.state:
            return
        assert state is VmState.ENDED or state in AFTER[self.state], f"{self.state} -> {state}"
        step = Step(state, _one_line(why), self._clock())
        self.steps.append(step)
        self._tell(step)

    def report(self, what: str) -> None:
        """Tell of something that happened and led to no other state."""
        self._tell(Step(self.state, _one_line(what), self._clock()))


def _one_line(text: str) -> str:
    """Return what can be printed, on one line: QEMU and its guest have a say in reasons."""
    return printable(text).replace("\n", " ").replace("\t", " ")
