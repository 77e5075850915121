"""The part of QEMU's machine protocol that the lab needs, synchronous and bounded."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

from .errors import LabError, LabTimeoutError

if TYPE_CHECKING:
    from pathlib import Path


class Qmp:
    """A connection to one QEMU."""

    def __init__(self, path: Path, *, seconds: float) -> None:
        """Connect within this time, and bound every later answer by it."""
        self._socket = _connect(path, seconds)
        self._socket.settimeout(seconds)
        self._file = self._socket.makefile("rw")
        self._receive()  # the greeting
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: object) -> Any:
        """Execute and return the answer; events that come before it are dropped."""
        self._file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = self._receive()
            if "error" in answer:
                raise LabError(f"QMP {name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def migrated(self, *, seconds: float) -> None:
        """Wait until the migration in either direction is complete."""
        end = time.monotonic() + seconds
        while (status := self.command("query-migrate")).get("status") != "completed":
            if status.get("status") in ("failed", "cancelled"):
                raise LabError(f"QEMU could not migrate: {status}")
            if time.monotonic() > end:
                raise LabTimeoutError(f"QEMU still migrates after {seconds:.0f} s: {status}")
            time.sleep(0.02)

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def _receive(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise LabError("QEMU hung up")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _connect(path: Path, seconds: float) -> socket.socket:
    end = time.monotonic() + seconds
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as problem:
            connection.close()
            if time.monotonic() > end:
                raise LabTimeoutError(f"QEMU did not open {path} in {seconds:.0f} s") from problem
            time.sleep(0.02)
        else:
            return connection
