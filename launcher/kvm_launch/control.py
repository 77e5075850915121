"""What other commands of a VM's owner ask of its supervisor, over a socket in its run directory.

A request is a line of JSON, an object with a ``verb``; the answer is one, with what was ``said``,
or with an ``error`` and the exit ``code`` that it means. Only who may enter the directory, which is
its owner, can connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from kvmhooks.errors import KvmhooksError, LaunchError, QemuError, UsageError
from kvmhooks.live.rundir import made

NAME: Final = "supervisor.sock"

MAX_BYTES: Final = 1 << 16

BACKLOG: Final = 100

SECONDS: Final = 300.0
"""How long an answer may take: a guest may need minutes to give a CPU back."""

Handler = Callable[[Mapping[str, Any]], Awaitable[list[str]]]


ERRORS: Final = {kind.exit_code: kind for kind in (LaunchError, UsageError, QemuError)}


def listening(path: Path) -> socket.socket:
    """Make the socket at which requests are heard: before the guest runs, which a full ``/run``
    would end after that. Raises ``LaunchError``.
    """
    with made(path), contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(BACKLOG)
        stack.pop_all()
    return listener


@asynccontextmanager
async def served(listener: socket.socket, handlers: Mapping[str, Handler]) -> AsyncIterator[None]:
    """Answer requests while the context lasts, one after the other."""
    turn = asyncio.Lock()
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            line = await reader.readline()
            async with turn:
                answer = await _answer(handlers, line)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError):
            pass  # whoever asked has gone, or does not end its line
        finally:
            talks.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(serve, sock=listener, limit=MAX_BYTES)
    try:
        yield
    finally:
        server.close()
        for task in list(talks):
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def _answer(handlers: Mapping[str, Handler], line: bytes) -> dict[str, Any]:
    """Carry out one request. Whatever goes wrong is an answer: the VM goes on."""
    try:
        request = json.loads(line)
        handler = handlers[request["verb"]]
    except (ValueError, TypeError, KeyError) as error:
        return {"error": f"found no request: {error!r}", "code": UsageError.exit_code}
    try:
        return {"said": await handler(request)}
    except KvmhooksError as error:
        return {"error": str(error), "code": error.exit_code}
    except OSError as error:
        return {"error": str(error), "code": KvmhooksError.exit_code}


def ask(directory: Path, verb: str, *, seconds: float = SECONDS, **request: object) -> list[str]:
    """Ask the supervisor of the VM in ``directory``; give what it said within ``seconds``.

    Raises ``KvmhooksError`` with the error of its answer, ``LaunchError`` where there is none.
    """
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(seconds)
        try:
            peer.connect(str(directory / NAME))
            peer.sendall(json.dumps({"verb": verb, **request}).encode() + b"\n")
            answer = b"".join(iter(lambda: peer.recv(MAX_BYTES), b""))
        except OSError as error:
            said = error.strerror or "no answer in time"
            raise LaunchError(f"{directory.name}: its supervisor: {said}") from error
    if not answer:
        raise LaunchError(f"{directory.name}: its supervisor gave no answer: the VM has ended")
    said = json.loads(answer)
    if "error" in said:
        raise ERRORS.get(said["code"], LaunchError)(f"{directory.name}: {said['error']}")
    return [str(line) for line in said["said"]]
