"""Requests to stop, without a VM."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from kvm_launch.life.stop import Stop, run_whole
from kvmhooks.signals import SIGNALS


class Vm:
    """Ends by itself, when it is asked to, or only by force."""

    def __init__(self, *, obeys: str) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.told: list[str] = []
        self._obeys = obeys

    async def ask(self) -> None:
        """Press its power button."""
        await self._tell("ask")

    async def force(self) -> None:
        """Make it quit."""
        await self._tell("force")

    async def _tell(self, what: str) -> None:
        self.told.append(what)
        if what == self._obeys:
            self.ended.set_result(None)


@pytest.mark.parametrize(
    ("obeys", "seconds", "signals", "told", "reason"),
    [
        ("itself", 30, 0, [], None),
        ("ask", 0.01, 0, ["ask"], None),
        ("ask", None, 1, ["ask"], None),
        (
            "force",
            0.01,
            0,
            ["ask", "force"],
            "0.01 s were over, and the guest did not power off when it was asked to",
        ),
        (
            "force",
            None,
            2,
            ["ask", "force"],
            "SIGTERM, and the guest did not power off when it was asked to",
        ),
    ],
)
def test_a_vm_is_asked_and_then_forced(
    obeys: str, seconds: float | None, signals: int, told: list[str], reason: str | None
) -> None:
    """The first request asks, the second or the end of the grace forces, an end needs neither."""

    async def scene() -> tuple[list[str], str | None]:
        vm = Vm(obeys=obeys)
        if obeys == "itself":
            asyncio.get_running_loop().call_later(0.01, vm.ended.set_result, None)
        stop = Stop(seconds, grace=30 if signals else 0.01)
        with stop.listening():
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.01)
            outcome = await asyncio.wait_for(
                stop.escalate(vm.ended, ask=vm.ask, force=vm.force), timeout=20
            )
        return vm.told, outcome

    assert asyncio.run(scene()) == (told, reason)


def test_the_handlers_of_before_are_put_back() -> None:
    """A SIGTERM that comes after the VM's end must not kill us while the host is restored."""
    before = [signal.default_int_handler] * len(SIGNALS)

    async def scene() -> None:
        with Stop(None, 1).listening():
            assert [signal.getsignal(number) for number in SIGNALS] != before

    try:
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
        asyncio.run(scene())
        assert [signal.getsignal(number) for number in SIGNALS] == before
    finally:
        for number in SIGNALS[1:]:
            signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("is_late", [False, True])
def test_a_signal_cancels_what_runs_whole(number: signal.Signals, *, is_late: bool) -> None:
    """It cleans up, the loop is closed, and only then the signal comes; also when all was done."""
    before = {each: signal.signal(each, signal.default_int_handler) for each in SIGNALS}
    told = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        try:
            if not is_late:
                os.kill(os.getpid(), number)
            await asyncio.sleep(0 if is_late else 20)
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")
            if is_late:
                loop.call_soon(os.kill, os.getpid(), number)  # in the loop's last turn

    try:
        with pytest.raises(KeyboardInterrupt):
            run_whole(scene())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert told == ["cleaned up"]
