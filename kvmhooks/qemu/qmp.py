"""QEMU over QMP (https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html).

The client is ours, though QEMU's own ``qemu.qmp`` does as much: Debian 12 and 13 have no package
of it, and without it kvm-launch, whose purpose it is, could start no VM there. Of its 3,000 lines a
client that connects to one socket of QEMU's needs what is below. QMP is specified to be stable
(https://www.qemu.org/docs/master/interop/qmp-spec.html): one JSON object a line, an answer for
each command with the command's ``id``, and events in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from kvmhooks.errors import QemuError
from kvmhooks.qemu.events import EVENT_BYTES, EventQueue
from kvmhooks.qemu.shapes import Shape, check
from kvmhooks.qemu.unix import connected
from kvmhooks.wording import printable

_LINE_BYTES: Final = 10 << 20
"""No answer of QEMU's is as long; ``query-qmp-schema``, the longest, has some 200 KiB."""

_READ_BYTES: Final = 1 << 16

_REASON_CHARACTERS: Final = 1000
"""So much of a refusal is told."""


class _LostError(Exception):
    """The connection has ended."""


class Monitor:
    """A QEMU that is connected: what kvmhooks asks of it, by its own names for it."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._turn = asyncio.Lock()
        self._asked: set[asyncio.Task[dict[str, Any]]] = set()
        self._last_id = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events = EventQueue()
        self._lost = ""
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.ensure_future(self._read())

    async def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        seconds: float | None = None,
        shape: Shape = object,
    ) -> Any:
        """Run a QMP command, for no longer than ``seconds``; return an answer of that ``shape``.

        Raises ``QemuError`` for its refusal, a lost connection, no answer in time, or one that is
        not of the shape.
        """
        answer = await self._execute(command, arguments, seconds=seconds)
        check(answer, shape, command)
        return answer

    async def give(self, descriptor: int, name: str) -> None:
        """Give QEMU a copy of a descriptor, which it knows by ``name`` (``getfd``).

        Raises ``QemuError``.
        """
        await self._execute("getfd", {"fdname": name}, descriptor=descriptor)

    @property
    def is_connected(self) -> bool:
        """QEMU has not closed the connection."""
        return not self._reader.done()

    @property
    def lost(self) -> str:
        """The reason why the connection was given up, after a colon; empty where QEMU closed it."""
        return self._lost

    @property
    def dropped_events(self) -> int:
        """The number of events that were dropped: they were not taken as fast as QEMU sent them."""
        return self._events.dropped

    async def next_event(self) -> dict[str, Any]:
        """Wait for the next event of QEMU; for ever, once it has closed the connection."""
        return await self._events.get()

    async def last_events(self, *, seconds: float) -> list[dict[str, Any]]:
        """Return the events that were not taken when QEMU closed the connection; wait for that."""
        await asyncio.wait({self._reader}, timeout=seconds)
        return self._events.take_all()

    async def threads(self) -> dict[str, int]:
        """Return role (``vCPU 0``, ``iothread 1``) to thread id. Raises ``QemuError``."""
        vcpus = await self.execute("query-cpus-fast", shape=[{"cpu-index": int, "thread-id": int}])
        iothreads = await self.execute("query-iothreads", shape=[{"id": str, "thread-id": int}])
        found = {f"vCPU {vcpu['cpu-index']}": vcpu["thread-id"] for vcpu in vcpus}
        for iothread in iothreads:
            if named := re.fullmatch(r"iothread(\d+)", iothread["id"]):
                found[f"iothread {named[1]}"] = iothread["thread-id"]
        return found

    async def greet(self) -> None:
        """Wait for QEMU's greeting, and leave capability negotiation. Raises ``QemuError``."""
        try:
            await self._greeted
        except _LostError as error:
            raise QemuError(f"QEMU closed its monitor before it answered{error}") from error
        await self.execute("qmp_capabilities")

    async def close(self) -> None:
        """Let go of QEMU. It may have ended meanwhile, which is no failure: its status says."""
        tasks = {self._reader, *self._asked}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _execute(
        self,
        command: str,
        arguments: dict[str, object] | None,
        *,
        seconds: float | None = None,
        descriptor: int | None = None,
    ) -> Any:
        message: dict[str, object] = {"execute": command}
        if arguments is not None:
            message["arguments"] = arguments
        asked = asyncio.ensure_future(self._ask(message, descriptor))
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        asked.add_done_callback(_take)  # its answer may come when nobody waits any more
        await asyncio.wait({asked}, timeout=seconds)
        if not asked.done():
            raise QemuError(f"QEMU has not answered {command} for {seconds:g} s")
        try:
            answer = asked.result()
        except (_LostError, OSError) as error:
            reason = f"the connection to QEMU was lost during {command}"
            raise QemuError(f"{reason}{error if isinstance(error, _LostError) else ''}") from error
        if "error" in answer:
            reason = printable(str(answer["error"].get("desc"))[:_REASON_CHARACTERS])
            raise QemuError(f"QEMU refused {command}: {reason}")
        return answer["return"]

    async def _ask(self, message: dict[str, object], descriptor: int | None) -> dict[str, Any]:
        """Send a command whole, and wait for the answer that has its ``id``."""
        if not self.is_connected:
            raise _LostError(self._lost)
        self._last_id += 1
        mine = self._last_id
        text = json.dumps({**message, "id": mine}).encode() + b"\n"
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[mine] = answer
        try:
            async with self._turn:
                if descriptor is not None:  # it comes with the first byte, as libvirt sends it
                    socket.send_fds(self._peer, [text[:1]], [descriptor])
                    text = text[1:]
                await asyncio.get_running_loop().sock_sendall(self._peer, text)
            return await answer
        finally:
            del self._answers[mine]
            if answer.done():
                _take(answer)

    async def _read(self) -> None:
        """Pass on what QEMU says until it closes the connection; have nobody wait then."""
        try:
            async for line in self._lines():
                self._pass_on(json.loads(line), len(line))
                await asyncio.sleep(0)  # signals and timers have their turn, however much it says
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            self._lost = f": it said what is no QMP: {error}"
        finally:
            waiting: list[asyncio.Future[Any]] = [self._greeted, *self._answers.values()]
            for future in waiting:
                if not future.done():
                    future.set_exception(_LostError(self._lost))
            _take(self._greeted)

    async def _lines(self) -> AsyncIterator[bytes]:
        """Give each line as soon as it is whole; end when the connection does.

        Only where an answer is waited for may one be long. Raises ``ValueError`` where it is not.
        """
        loop = asyncio.get_running_loop()
        rest = bytearray()
        while True:
            try:
                some = await loop.sock_recv(self._peer, _READ_BYTES)
            except OSError:  # QEMU was killed with something unread
                return
            if not some:
                return
            await asyncio.sleep(0)  # sock_recv() does not let others run while something is there
            most = _LINE_BYTES if self._answers else EVENT_BYTES
            *whole, last = some.split(b"\n")
            for line in whole:
                rest += line
                if rest.strip():
                    yield bytes(rest)
                rest.clear()
            rest += last
            if len(rest) > most:
                raise ValueError(f"a line of more than {most} bytes")

    def _pass_on(self, event: object, length: int) -> None:
        """Take one message of so many bytes: an event, an answer, or the greeting.

        An event that is none is passed over. Raises ``TypeError`` or ``LookupError`` for what is
        no message.
        """
        if not isinstance(event, dict):
            raise TypeError("found no object")
        if "event" in event:
            if isinstance(event["event"], str) and isinstance(event.get("data", {}), dict):
                self._events.put(event, length)
        elif "QMP" in event:
            if not self._greeted.done():
                self._greeted.set_result(None)
        elif "return" not in event and not isinstance(event["error"], dict):
            raise TypeError("found an error that is no object")
        else:
            answer = self._answers.get(event.get("id", 0))
            if answer is not None and not answer.done():
                answer.set_result(event)


def _take(asked: asyncio.Future[Any]) -> None:
    """Look at an answer for which nobody waits any more, so that asyncio does not complain."""
    if not asked.cancelled():
        asked.exception()


@asynccontextmanager
async def connect(path: Path, *, seconds: float) -> AsyncIterator[Monitor]:
    """Connect to the QEMU that listens on the socket ``path``.

    Raises ``QemuError`` when it does not answer within ``seconds``.
    """
    try:
        async with asyncio.timeout(seconds), contextlib.AsyncExitStack() as stack:
            monitor = Monitor(stack.enter_context(await connected(path)))
            stack.push_async_callback(monitor.close)
            await monitor.greet()
            kept = stack.pop_all()
    except TimeoutError as error:  # an OSError, too
        raise QemuError(f"QEMU did not answer on its monitor within {seconds:.0f} s") from error
    except OSError as error:
        raise QemuError("QEMU closed its monitor before it answered") from error
    async with kept:
        yield monitor
