"""A QEMU that was started with ``-S``, asked over QMP what it is."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.integration.components import QEMU, ROOT, eventually


@frozen
class Emulator:
    """One installed QEMU."""

    name: str
    program: Path
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}


def emulators() -> list[Emulator]:
    """The system's, and the lab's newer one where that is unpacked (``tests/lab/qemu.py``)."""
    found = [Emulator("system", QEMU)]
    for usr in sorted((ROOT / "build" / "lab" / "qemu").glob("*/usr")):
        share = usr / "share"
        found.append(
            Emulator(
                "backports",
                usr / "bin" / "qemu-system-x86_64",
                ("-L", str(share / "qemu"), "-L", str(share / "seabios")),
                {"QEMU_MODULE_DIR": str(usr / "lib" / "x86_64-linux-gnu" / "qemu")},
            )
        )
    return found


class Asked:
    """QMP (https://www.qemu.org/docs/master/interop/qmp-spec.html), a command at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rw", encoding="utf-8")
        assert "QMP" in json.loads(self._stream.readline())
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return QEMU's answer."""
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._stream.flush()
        while True:
            answer = json.loads(self._stream.readline())
            if "event" not in answer:
                assert "return" in answer, (command, arguments, answer)
                return answer["return"]

    def close(self) -> None:
        """Let the connection go."""
        self._stream.close()

    def get(self, path: str, name: str) -> Any:
        """A property of an object."""
        return self.ask("qom-get", path=path, property=name)


@contextmanager
def stopped(emulator: Emulator, arguments: Sequence[str], folder: Path) -> Iterator[Asked]:
    """A QEMU with these arguments that has not run an instruction; it is gone at the end."""
    place = folder / "qmp"
    command = [str(emulator.program), *emulator.options, *arguments, "-S"]
    qmp = ["-qmp", f"unix:{place},server=on,wait=off"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *qmp],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(emulator.environment),
        )
    try:
        eventually(lambda: place.exists() or process.poll() is not None, seconds=60)
        assert process.poll() is None, (folder / "log").read_text()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            eventually(lambda: _connects(connection, place) or process.poll() is not None)
            with closing(Asked(connection)) as asked:
                yield asked
    finally:
        process.kill()
        process.wait()
        place.unlink(missing_ok=True)


def _connects(connection: socket.socket, place: Path) -> bool:
    try:
        connection.connect(str(place))
    except ConnectionRefusedError:
        return False  # it is bound and does not listen yet
    return True
