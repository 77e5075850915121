"""The requests of a VM's owner to its supervisor, over a socket in its run directory.

A request is a line of JSON, an object with a ``verb``; the answer is one, with what was ``said``,
or with an ``error`` and the exit ``code`` that it means. Only who may enter the directory, which is
its owner, can connect. Neither side trusts the other: lines, times and connections are bounded, and
whatever is no request gets an answer that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from kvm_launch.talk.socket_names import SUPERVISE, link_older, missing, path_of
from kvmhooks.errors import KvmhooksError, LaunchError, QemuError, UsageError, words_of
from kvmhooks.qemu.run_dir import made
from kvmhooks.qemu.unix import connected
from kvmhooks.wording import printable

MAX_BYTES: Final = 1 << 16
"""The longest request."""

MAX_ANSWER_BYTES: Final = 1 << 20

CLIENTS: Final = 16
"""The number of clients that may be connected at once."""

REQUEST_SECONDS: Final = 10.0
"""The time that a client may take to send its line, and to take in the answer."""

BACKLOG: Final = 100

SECONDS: Final = 300.0
"""The time that an answer may take: a guest may need minutes to give a CPU back."""

Handler = Callable[[Mapping[str, Any]], Awaitable[list[str]]]


ERRORS: Final = {kind.exit_code: kind for kind in (LaunchError, UsageError, QemuError)}


def listening(directory: Path) -> socket.socket:
    """Make the socket at which requests are heard: before the guest runs, which a full ``/run``
    would end after that. Raises ``LaunchError``.
    """
    path = directory / SUPERVISE
    with made(path), contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(BACKLOG)
        link_older(path)
        stack.pop_all()
    return listener


@asynccontextmanager
async def served(
    listener: socket.socket, handlers: Mapping[str, Handler], *, seconds: float = REQUEST_SECONDS
) -> AsyncIterator[None]:
    """Answer requests while the context lasts, one after the other.

    A client has so many ``seconds`` to send its line, and as many to take in the answer.
    """
    turn = asyncio.Lock()
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            if len(talks) > CLIENTS:
                message = f"found {CLIENTS} others who ask, expected fewer"
                await _tell(writer, _error(message), seconds)
            elif answer := await _talk(reader, writer, turn, handlers, seconds):
                await _tell(writer, answer, seconds)
        except OSError:
            pass  # whoever asked has gone, or does not take the answer in
        finally:
            talks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_unix_server(serve, sock=listener, limit=MAX_BYTES)
    try:
        yield
    finally:
        server.close()
        for task in list(talks):
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def _talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    turn: asyncio.Lock,
    handlers: Mapping[str, Handler],
    seconds: float,
) -> dict[str, Any] | None:
    """Read a request and carry it out; return the answer, None for who has left.

    Raises ``OSError``.
    """
    try:
        async with asyncio.timeout(seconds):
            line = await reader.readline()
        if not line:
            return None
        handler, request = _request(handlers, line)
    except UsageError as error:
        return _error(str(error), UsageError.exit_code)
    except TimeoutError:
        message = f"found no whole line within {seconds:g} s, expected a request"
        return _error(message, UsageError.exit_code)
    except ValueError:  # StreamReader.readline()
        message = f"found a line of more than {MAX_BYTES} bytes, expected a request"
        return _error(message, UsageError.exit_code)
    async with turn:
        if _has_left(writer):  # it has given up, so nothing is done any more
            return None
        return await _answer(handler, request)


def _request(handlers: Mapping[str, Handler], line: bytes) -> tuple[Handler, Mapping[str, Any]]:
    """Return what answers a request, and the request. Raises ``UsageError`` for what is none."""
    try:
        request = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise UsageError("found no request, expected a line with a JSON object")
    verb = request.get("verb")
    if not isinstance(verb, str) or verb not in handlers:
        found = repr(verb)[:80] if "verb" in request else "nothing"
        raise UsageError(f"verb: found {found}, expected one of: {', '.join(handlers)}")
    return handlers[verb], request


async def _answer(handler: Handler, request: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one request. Any error is an answer: the VM goes on."""
    try:
        return {"said": await handler(request)}
    except KvmhooksError as error:
        return _error(str(error), error.exit_code)
    except OSError as error:
        return _error(words_of(error))
    except Exception as error:  # noqa: BLE001 -- a mistake of ours: told to both, and no VM's end
        verb = request["verb"]
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"{verb}: a mistake of kvm-launch", "exception": error}
        )
        return _error(
            f"{verb}: a mistake of kvm-launch: {type(error).__name__}: {words_of(error)}",
            QemuError.exit_code,
        )


def _error(message: str, code: int = KvmhooksError.exit_code) -> dict[str, Any]:
    return {"error": message, "code": code}


async def _tell(writer: asyncio.StreamWriter, answer: Mapping[str, Any], seconds: float) -> None:
    """Send an answer to its last byte. Raises ``OSError``, also when that takes too long."""
    async with asyncio.timeout(seconds):
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _has_left(writer: asyncio.StreamWriter) -> bool:
    """Return whether the other side is closed; one that only sends no more waits for its answer.

    POLLHUP is for both directions, POLLRDHUP for one (``unix_poll()``, net/unix/af_unix.c).
    """
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), 0)
    return writer.is_closing() or any(event & select.POLLHUP for _, event in poll.poll(0))


def ask(directory: Path, verb: str, *, seconds: float = SECONDS, **request: object) -> list[str]:
    """Ask the supervisor of the VM in ``directory``; return what it said within ``seconds``.

    Raises ``KvmhooksError`` with the error of its answer, ``LaunchError`` where there is none.
    """
    return asyncio.run(asked(directory, verb, seconds=seconds, **request))


async def asked(
    directory: Path, verb: str, *, seconds: float = SECONDS, **request: object
) -> list[str]:
    """Ask as ``ask`` does, in a loop that runs."""
    name = directory.name
    line = json.dumps({"verb": verb, **request}).encode() + b"\n"
    if len(line) > MAX_BYTES:
        raise UsageError(f"{verb}: found {len(line)} bytes, expected at most {MAX_BYTES}")
    try:
        async with asyncio.timeout(seconds):
            answer = await _exchange(path_of(directory, SUPERVISE), line)
    except TimeoutError as error:
        raise LaunchError(f"{name}: its supervisor: no answer within {seconds:g} s") from error
    except FileNotFoundError as error:
        raise missing(directory, SUPERVISE) from error
    except OSError as error:
        raise LaunchError(f"{name}: its supervisor: {error.strerror or error}") from error
    except ValueError as error:
        found = f"found an answer of more than {MAX_ANSWER_BYTES} bytes"
        raise LaunchError(f"{name}: its supervisor: {found}") from error
    if not answer:
        raise LaunchError(f"{name}: its supervisor gave no answer: the VM has ended")
    return _understood(name, answer)


async def _exchange(path: Path, line: bytes) -> bytes:
    """Send a line and return the one that comes back; nothing where there is no answer.

    Raises ``OSError``, ``ValueError`` for an answer that is too long.
    """
    loop, answer = asyncio.get_running_loop(), bytearray()
    with await connected(path) as peer:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await loop.sock_sendall(peer, line)  # it may have answered before: too many ask
        with contextlib.suppress(ConnectionResetError):
            while chunk := await loop.sock_recv(peer, MAX_BYTES):
                answer += chunk
                if len(answer) > MAX_ANSWER_BYTES:
                    raise ValueError("the answer")
                if chunk.endswith(b"\n"):
                    break
    return bytes(answer)


def _understood(name: str, answer: bytes) -> list[str]:
    """Return what an answer says, without what a terminal would obey. Raises its error."""
    try:
        match json.loads(answer):
            case {"said": [*lines]}:
                return [printable(str(line)) for line in lines]
            case {"error": str(error), "code": int(code)}:
                raise ERRORS.get(code, LaunchError)(printable(f"{name}: {error}"))
    except (ValueError, RecursionError):
        pass  # it is no JSON
    raise LaunchError(f"{name}: its supervisor: found no answer that can be read, expected one")
