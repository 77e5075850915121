"""QEMU over QMP (https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html)."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from kvmhooks.errors import QemuError
from kvmhooks.live.unix import connected


class Monitor:
    """A QEMU that is connected: what kvmhooks asks of it, by its own names for it."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        seconds: float | None = None,
    ) -> Any:
        """Run a QMP command, for no longer than ``seconds``.

        Raises ``QemuError`` for its refusal, a lost connection, or no answer in time.
        """
        asked = asyncio.ensure_future(self._client.execute(command, arguments))
        await asyncio.wait({asked}, timeout=seconds)
        if not asked.done():  # its answer may still come, and has to be taken then
            asked.add_done_callback(_take)
            raise QemuError(f"QEMU has not answered {command} for {seconds:g} s")
        try:
            return asked.result()
        except ExecuteError as error:
            raise QemuError(f"QEMU refused {command}: {error}") from error
        except QMPError as error:
            raise QemuError(f"the connection to QEMU was lost during {command}") from error

    async def give(self, descriptor: int, name: str) -> None:
        """Give QEMU a copy of a descriptor, which it knows by ``name`` (``getfd``).

        Raises ``QemuError``.
        """
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as error:
            raise QemuError("the connection to QEMU was lost") from error
        await self.execute("getfd", {"fdname": name})

    @property
    def is_connected(self) -> bool:
        """Whether QEMU has not closed the connection."""
        return self._client.runstate is Runstate.RUNNING

    async def next_event(self) -> dict[str, Any]:
        """Wait for the next event of QEMU."""
        return dict(await self._client.events.get())

    async def last_events(self, *, seconds: float) -> list[dict[str, Any]]:
        """The events that were not taken when QEMU closed the connection; waits for that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.is_connected:
                    await self._client.runstate_changed()
        return [dict(event) for event in self._client.events.clear()]

    async def threads(self) -> dict[str, int]:
        """Role (``vCPU 0``, ``iothread 1``) to thread id. Raises ``QemuError``."""
        vcpus = await self.execute("query-cpus-fast")
        iothreads = await self.execute("query-iothreads")
        found = {f"vCPU {vcpu['cpu-index']}": vcpu["thread-id"] for vcpu in vcpus}
        for iothread in iothreads:
            if named := re.fullmatch(r"iothread(\d+)", iothread["id"]):
                found[f"iothread {named[1]}"] = iothread["thread-id"]
        return found


def _take(asked: asyncio.Future[Any]) -> None:
    """Look at an answer for which nobody waits any more, so that asyncio does not complain."""
    if not asked.cancelled():
        asked.exception()


@asynccontextmanager
async def connect(socket: Path, *, seconds: float) -> AsyncIterator[Monitor]:
    """Connect to the QEMU that listens on ``socket``.

    Raises ``QemuError`` when it does not answer within ``seconds``.
    """
    client = QMPClient("kvmhooks")
    try:
        await asyncio.wait_for(_join(client, socket), seconds)
    except TimeoutError as error:  # an OSError, too
        raise QemuError(f"QEMU did not answer on its monitor within {seconds:.0f} s") from error
    except (QMPError, OSError, EOFError) as error:
        raise QemuError("QEMU closed its monitor before it answered") from error
    try:
        yield Monitor(client)
    finally:
        await _disconnect(client)


async def _join(client: QMPClient, socket: Path) -> None:
    await client.connect(await connected(socket))


async def _disconnect(client: QMPClient) -> None:
    """Let go of QEMU. It may have ended meanwhile, which is no failure: its exit status says."""
    try:
        await client.disconnect()
    except (QMPError, OSError, EOFError) as error:
        client.logger.debug("the monitor ended: %s", error)
