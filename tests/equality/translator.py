"""The process that asks libvirt (``translate.py``), for tests and benchmarks."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class Refused(Exception):
    """libvirt does not take a domain."""


class Translator:
    """Domain XML into QEMU's arguments by libvirt itself, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        program = Path(__file__).with_name("translate.py")
        with (folder / "translator.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--propagation", "private"),
                    *(sys.executable, program, folder),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._log = folder / "translator.log"

    def arguments(self, xml: str) -> list[str]:
        """QEMU's arguments for a domain, without the program.

        Raises ``Refused`` with libvirt's words.
        """
        return self.timed(xml)[0]

    def timed(self, xml: str) -> tuple[list[str], float]:
        """The same, and the seconds that libvirt took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(xml) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._log.read_text(errors="replace")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        words = shlex.split(answer["argv"])
        program = next(at for at, word in enumerate(words) if word.startswith("/"))
        return words[program + 1 :], answer["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
