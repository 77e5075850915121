"""The lab's agent: runs inside the lab, one connection is one command.

A connection carries frames: one letter, four bytes of length (big endian), the data.

    to the agent     J  what to run, as JSON: {"argv": [...], "pty": false, "size": [rows, cols]}
                     i  bytes for its standard input;  I  end of its standard input
    from the agent   o  bytes of standard output;  e  bytes of standard error
                     x  the exit code, in decimal (128 + N for signal N), and the end

A connection that ends before the command does ends the command, with all its children. Standard
library only: it starts before anything else is known to work.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 5555
DRAIN_SECONDS = 1.0
"""Time to await output once the command is gone but a child of it still holds the pipe."""

Process = subprocess.Popen[bytes]

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "xterm",
}


def main() -> None:
    """Serve until the lab ends."""
    listener = socket.create_server(("0.0.0.0", PORT), backlog=64)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def serve(connection: socket.socket) -> None:
    """One command from its request to its exit code."""
    with connection:
        kind, data = receive(connection)
        if kind != b"J":
            return
        request = json.loads(data)
        run = run_on_terminal if request.get("pty") else run_on_pipes
        try:
            run(connection, request)
        except (ConnectionError, EOFError):
            return


def run_on_pipes(connection: socket.socket, request: dict[str, Any]) -> None:
    """Run it with three pipes."""
    pipe = subprocess.PIPE
    process = start(request["argv"], pipe, pipe, pipe)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    feed(connection, process, process.stdin.fileno(), process.stdin.close)
    lock = threading.Lock()
    pumps = [
        pump(connection, lock, b"o", process.stdout.fileno()),
        pump(connection, lock, b"e", process.stderr.fileno()),
    ]
    finish(connection, lock, process, pumps)


def run_on_terminal(connection: socket.socket, request: dict[str, Any]) -> None:
    """Run it on a terminal of its own."""
    outer, inner = pty.openpty()
    rows, columns = request["size"]
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = start(["setsid", "--ctty", "--wait", *request["argv"]], inner, inner, inner)
    os.close(inner)
    feed(connection, process, outer, lambda: None)
    lock = threading.Lock()
    finish(connection, lock, process, [pump(connection, lock, b"o", outer)])


def start(argv: list[str], stdin: int, stdout: int, stderr: int) -> Process:
    """Start the program in a session of its own; a program that is not there exits with 127."""
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            bufsize=0,
            cwd="/root",
            env=ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as problem:
        complaint = ["sh", "-c", 'echo "$0" >&2; exit 127', f"lab-agent: {problem}"]
        return start(complaint, stdin, stdout, stderr)


def feed(
    connection: socket.socket, process: Process, descriptor: int, close: Callable[[], None]
) -> None:
    """Hand standard input on, in a thread; a lost connection kills the command's whole session."""

    def loop() -> None:
        try:
            while True:
                kind, data = receive(connection)
                if kind == b"i":
                    write(descriptor, data)
                elif kind == b"I":
                    close()
        except (OSError, EOFError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    threading.Thread(target=loop, daemon=True).start()


def pump(
    connection: socket.socket, lock: threading.Lock, kind: bytes, descriptor: int
) -> threading.Thread:
    """Send what a descriptor gives, in a thread."""

    def loop() -> None:
        try:
            while data := os.read(descriptor, 65536):
                with lock:
                    connection.sendall(kind + len(data).to_bytes(4, "big") + data)
        except OSError:
            return  # the terminal or the connection is gone: so is the reason to pump

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread


def finish(
    connection: socket.socket,
    lock: threading.Lock,
    process: Process,
    pumps: list[threading.Thread],
) -> None:
    """Wait for the end, then send the exit code."""
    code = process.wait()
    for thread in pumps:
        thread.join(DRAIN_SECONDS)
    data = str(code if code >= 0 else 128 - code).encode()
    with lock:
        connection.sendall(b"x" + len(data).to_bytes(4, "big") + data)


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    """One frame."""
    head = exactly(connection, 5)
    return head[:1], exactly(connection, int.from_bytes(head[1:], "big"))


def exactly(connection: socket.socket, size: int) -> bytes:
    """Receive that many bytes."""
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def write(descriptor: int, data: bytes) -> None:
    """All of it; a program that reads no more loses the rest, as in a shell's pipe."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        return


if __name__ == "__main__":
    main()
