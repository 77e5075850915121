"""QEMU over QMP (https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from qemu.qmp import ExecuteError, QMPClient, QMPError

from kvmhooks.errors import QemuError


class Monitor:
    """A QEMU that is connected: what kvmhooks asks of it, by its own names for it."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        """Run a QMP command. Raises ``QemuError`` for its refusal or a lost connection."""
        try:
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise QemuError(f"QEMU refused {command}: {error}") from error
        except QMPError as error:
            raise QemuError(f"the connection to QEMU was lost during {command}") from error

    async def threads(self) -> dict[str, int]:
        """Role (``vCPU 0``, ``iothread 1``) to thread id. Raises ``QemuError``."""
        vcpus = await self.execute("query-cpus-fast")
        iothreads = await self.execute("query-iothreads")
        found = {f"vCPU {vcpu['cpu-index']}": vcpu["thread-id"] for vcpu in vcpus}
        for iothread in iothreads:
            if named := re.fullmatch(r"iothread(\d+)", iothread["id"]):
                found[f"iothread {named[1]}"] = iothread["thread-id"]
        return found

    async def shutdown_reason(self, *, seconds: float) -> str:
        """Why QEMU ended: the ``ShutdownCause`` of its ``SHUTDOWN`` event (qapi/run-state.json).

        To be asked after its end. An event that has not come within ``seconds`` is ``unknown``.
        """
        try:
            async with asyncio.timeout(seconds):
                async for event in self._client.events:
                    if event["event"] == "SHUTDOWN":
                        return str(cast("dict[str, object]", event["data"])["reason"])
        except TimeoutError:
            pass
        return "unknown"


@asynccontextmanager
async def connect(socket: Path, *, seconds: float) -> AsyncIterator[Monitor]:
    """Connect to the QEMU that listens on ``socket``.

    Raises ``QemuError`` when it does not answer within ``seconds``.
    """
    client = QMPClient("kvmhooks")
    try:
        await asyncio.wait_for(client.connect(str(socket)), seconds)
    except (QMPError, OSError, EOFError) as error:
        raise QemuError("QEMU closed its monitor before it answered") from error
    except TimeoutError as error:
        raise QemuError(f"QEMU did not answer on its monitor within {seconds:.0f} s") from error
    try:
        yield Monitor(client)
    finally:
        await _disconnect(client)


async def _disconnect(client: QMPClient) -> None:
    """Let go of QEMU. It may have ended meanwhile, which is no failure: its exit status says."""
    try:
        await client.disconnect()
    except (QMPError, OSError, EOFError) as error:
        client.logger.debug("the monitor ended: %s", error)
