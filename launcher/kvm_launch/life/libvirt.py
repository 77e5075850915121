"""The VM in libvirt instead: defined, started paused, its pins read back, followed to its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Final

from kvm_launch.life.stop import Stop
from kvm_launch.talk.console import Console
from kvm_launch.tell.outcome import Ended
from kvmhooks.errors import QemuError
from kvmhooks.libvirt.connection import Domain, connected, define
from kvmhooks.placement.model import Plan
from kvmhooks.qemu import threads as live_threads

POLL_SECONDS: Final = 0.1
CONSOLE_SECONDS: Final = 5.0
"""The time for the last words on the console once the domain has ended."""


async def follow(plan: Plan, uri: str, *, console: Console, stop: Stop) -> Ended:
    """Run the VM of ``plan`` in the libvirtd of ``uri``; its definition stays there.

    Raises ``LaunchError`` when it cannot be defined, ``QemuError`` when it fails; it does not run
    any more then.
    """
    with connected(uri) as connection:
        domain = define(connection, plan)
        domain.start_paused()
        try:
            process = domain.process()
            threads = live_threads.threads_by_name(process)
            pins = tuple(live_threads.read_back(process, plan, threads))
            live_threads.require_planned(pins)
            relay = _relay(plan, domain, console)
            with stop.listening():
                domain.resume()
                forced = await _until_ended(domain, stop)
        except BaseException:
            domain.forget()
            raise
        if relay is not None:
            await asyncio.to_thread(relay.join, CONSOLE_SECONDS)
        ending = domain.ending()
    is_clean = ending == "shutdown"
    message = "the guest powered off" if is_clean else f"the domain ended: {forced or ending}"
    return Ended(pins, message, is_clean, console.report)


def _relay(plan: Plan, domain: Domain, console: Console) -> Thread | None:
    """Pass on the console in a thread, since libvirt's streams block."""
    if plan.spec.console.type == "none":
        return None
    thread = Thread(target=_show, args=(domain.read_console(), console), daemon=True)
    thread.start()
    return thread


def _show(chunks: Iterator[bytes], console: Console) -> None:
    for chunk in chunks:
        console.show(chunk)


async def _until_ended(domain: Domain, stop: Stop) -> str | None:
    """Wait for the domain's end; None if it came by itself, else why it was destroyed."""

    async def tell(command: Callable[[], None]) -> None:
        with contextlib.suppress(QemuError):  # it may just have ended by itself
            await asyncio.to_thread(command)

    ended = asyncio.ensure_future(_ended(domain))
    try:
        return await stop.escalate(
            ended,
            ask=lambda: tell(domain.press_power_button),
            force=lambda: tell(domain.destroy),
        )
    finally:
        ended.cancel()


async def _ended(domain: Domain) -> None:
    while await asyncio.to_thread(domain.is_active):  # noqa: ASYNC110 -- libvirt is asked
        await asyncio.sleep(POLL_SECONDS)
