"""The events of a VM while it runs, as QEMU tells them, and what they make of the VM's end.

The events are those of qapi/run-state.json and qapi/block-core.json
(https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvm_launch.tell.states import Life, VmState
from kvmhooks.errors import QemuError
from kvmhooks.qemu.qmp import Monitor
from kvmhooks.wording import counted

ENDINGS: Final[Mapping[str, tuple[str, bool]]] = {
    "guest-shutdown": ("the guest powered off", True),
    "guest-reset": ("the guest reset, and QEMU was told to end then", True),
    "guest-panic": ("the guest panicked", False),
    "host-signal": ("QEMU ended: it got a signal", False),
    "host-qmp-quit": ("QEMU ended: it was told to quit", False),
    "host-error": ("QEMU ended: an error of the host", False),
    "watchdog": ("the guest's watchdog ended it", False),
}
"""``ShutdownCause``: how it is told, and whether the guest wanted it."""

FAILURES: Final[Mapping[str, str]] = {
    "hang": "QEMU did not answer any more, and was killed",
    "internal-error": "KVM cannot run the guest any more (a KVM internal error)",
}

HEARTBEAT_SECONDS: Final = 10.0
"""The interval of asking QEMU whether it still answers: a wake-up that costs next to nothing."""

NOTE_SECONDS: Final = 1.0
"""The interval at which each kind of event is told of."""

PACE_SECONDS: Final = 0.05
"""The time for which a state is let be before the next; the latest events wait (``Events``)."""

MOST_CHARACTERS: Final = 300


class Watch:
    """Follows one QEMU: its events become steps of the VM's life."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.reason = "unknown"
        """QEMU's end: a ``ShutdownCause``, ``watchdog``, ``internal-error`` or ``hang``."""
        self.has_migrated = False
        """The guest runs in another QEMU now."""
        self._noted_at: dict[str, float] = {}
        self._handlers: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "RESUME": lambda _: self._runs(),
            "STOP": lambda _: self._stops("QEMU stopped it"),
            "RESET": lambda _: self._note("RESET", "the guest reset"),
            "POWERDOWN": lambda _: self._note("POWERDOWN", "its power button was pressed"),
            "SHUTDOWN": self._shuts_down,
            "GUEST_PANICKED": lambda data: self._note(
                "GUEST_PANICKED", f"the guest panicked: {_words(data.get('action'))}"
            ),
            "WATCHDOG": self._watchdog,
            "BLOCK_IO_ERROR": self._block_error,
        }

    async def follow(self, monitor: Monitor) -> None:
        """Handle events until cancelled."""
        while True:
            event, before = await monitor.next_event(), self._life.state
            self.handle(event)
            if self._life.state is not before:  # of a storm of states only some are told
                await asyncio.sleep(PACE_SECONDS)

    def handle(self, event: Mapping[str, Any]) -> None:
        """Take one event; those that say nothing of the VM's life are passed over."""
        handler = self._handlers.get(str(event["event"]))
        if handler is not None:
            handler(event.get("data", {}))

    async def feel_pulse(self, monitor: Monitor, patience: float) -> None:
        """Return when QEMU has not answered for ``patience`` seconds, or KVM gave up."""
        while True:
            await asyncio.sleep(min(HEARTBEAT_SECONDS, patience))
            try:
                status = await monitor.execute(
                    "query-status", seconds=patience, shape={"status": str}
                )
            except QemuError:
                if monitor.is_connected:
                    self.reason = "hang"
                    return
                if monitor.lost:
                    self._life.report(f"QEMU cannot be followed any more{monitor.lost}")
                await asyncio.Event().wait()  # others see to its end
            if status["status"] == "internal-error":
                self.reason = "internal-error"
                return

    def missed(self, count: int) -> None:
        """Tell of events that were dropped."""
        if count:
            self._life.report(f"{counted(count, 'event')} of QEMU's were too many, and dropped")

    def asked(self) -> None:
        """Note that the guest is about to be asked to power off."""
        self._life.enter(VmState.SHUTTING_DOWN, "asked to power off")

    def ending(self, forced: str | None) -> tuple[str, bool]:
        """Return how a QEMU that did not fail has ended, and whether that is a good end."""
        if self.has_migrated:
            return "the guest runs in another QEMU of this host now", True
        if forced is not None:
            return f"QEMU ended: {forced}", False
        return ENDINGS.get(self.reason, (f"QEMU ended: {self.reason}", False))

    @property
    def failure(self) -> str:
        """The reason why QEMU failed, as far as it is known."""
        return FAILURES.get(self.reason, "QEMU failed")

    def _runs(self) -> None:
        self._life.enter(VmState.RUNNING)

    def _stops(self, why: str) -> None:
        if self._life.state in {VmState.RUNNING, VmState.SHUTTING_DOWN}:
            self._life.enter(VmState.PAUSED, why)

    def _shuts_down(self, data: Mapping[str, Any]) -> None:
        self.reason = _words(data.get("reason", "unknown"))
        if self._life.state in {VmState.RUNNING, VmState.PAUSED}:
            self._life.enter(VmState.SHUTTING_DOWN, self.reason)

    def _note(self, event: str, what: str) -> None:
        """Tell of an event; one a second of each kind: a guest may reset a thousand times in it."""
        now = time.monotonic()
        if now - self._noted_at.get(event, float("-inf")) >= NOTE_SECONDS:
            self._noted_at[event] = now
            self._life.report(what)

    def _watchdog(self, data: Mapping[str, Any]) -> None:
        action = _words(data.get("action"))
        self._note("WATCHDOG", f"the watchdog barked: {action}")
        if action == "poweroff":  # QEMU exits at once, with status 0 (watchdog_perform_action())
            self.reason = "watchdog"

    def _block_error(self, data: Mapping[str, Any]) -> None:
        why = "no space left" if data.get("nospace") else _words(data.get("reason"))
        where = _words(data.get("qom-path") or data.get("node-name") or data.get("device"))
        message = f"{_words(data.get('operation'))} error of {where}: {why}"
        self._note("BLOCK_IO_ERROR", message)
        if data.get("action") == "stop":
            self._stops(message)


def _words(value: object) -> str:
    """Return what QEMU says of something, cut: the record that it goes into is a page."""
    return str(value)[:MOST_CHARACTERS]
