"""Real components for the integration tests: kvm-launch as a process, and the QEMUs it starts."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.guard import is_ours

ROOT = Path(__file__).resolve().parents[2]
QEMU = Path("/usr/bin/qemu-system-x86_64")

STALL = b"detected stall"
"""The report of a Linux whose CPU makes no progress (kernel/rcu/tree_stall.h). Under QEMU 7.2's
emulation of several CPUs it was seen once in a boot, 2 s after its start, and went on for ever.
"""


class Launcher:
    """Runs kvm-launch with its run directories below ``base``."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.run_dir = base / "run"
        self.program: tuple[object, ...] = (Path(sys.executable).with_name("kvm-launch"),)
        self._started: list[subprocess.Popen[str]] = []

    def beside(self, root: Path) -> None:
        """From now on, isolate on a host that is a tree of files."""
        self.program = (sys.executable, "-m", "tests.integration.beside", root)

    def command(self, *arguments: object) -> list[str]:
        """The words of a command line."""
        run_dir = () if "--host" in arguments else ("--run-dir", self.run_dir)
        return [str(word) for word in (*self.program, *run_dir, *arguments)]

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start it, with pipes to read."""
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'launcher'}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        """Kill what a test that failed has left; its QEMUs die with it."""
        for process in self._started:
            process.kill()
            with process:
                pass
        for pid in self._detached():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _detached(self) -> Iterator[int]:
        """The supervisors that nobody waits for: whoever has our run directory among its words."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if os.fsencode(self.run_dir) in words:
                        yield int(entry.name)

    def run(self, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run it to its end; once more when an emulated guest's kernel has reported a stall."""
        try:
            return self._run(arguments, timeout)
        except subprocess.TimeoutExpired as over:
            if STALL not in (over.output or b""):
                raise
        print("the guest's kernel had reported a stall: tried again")
        return self._run(arguments, timeout)

    def _run(
        self, arguments: tuple[object, ...], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.terminate()  # so that it ends its VM in libvirt too
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=timeout)
                raise
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def vm(
        self, name: str, text: str = "", *, cpu: str = "vcpus = 1", top: str = "", patience: int = 1
    ) -> Path:
        """Write the description of a small VM that sits in its firmware.

        It is told to quit ``patience`` seconds after it was asked to power off: a firmware never
        does.
        """
        path = self.base / f"{name}.toml"
        path.write_text(
            f'name = "{name}"\n{top}\n[cpu]\n{cpu}\n[memory]\nsize = "64MiB"\n'
            f"[shutdown]\ntimeout = {patience}\n{text}\n"
        )
        return path

    def left_behind(self) -> list[str]:
        """Return what is in the run directories beside the remembered verdict on KVM."""
        if not self.run_dir.exists():
            return []
        return [path.name for path in self.run_dir.iterdir() if path.name != ".kvm-probe.json"]


def read_until(stream: IO[str], wanted: str, seconds: float = 60) -> str:
    """Return what a process prints, up to the line with ``wanted``; fail when it does not come."""
    output = ""
    until = time.monotonic() + seconds
    while wanted not in output:
        ready, _, _ = select.select([stream], [], [], max(0, until - time.monotonic()))
        chunk = os.read(stream.fileno(), 1 << 16).decode(errors="replace") if ready else ""
        assert chunk, f"{wanted!r} did not come: {output}"
        output += chunk
    return output


def processes_of(name: str) -> list[int]:
    """The QEMUs of this run that run a VM of this name; not one only about to become QEMU."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_ours(int(entry.name)):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                program = (entry / "exe").readlink()
            except OSError:
                continue
            if program == QEMU and f"guest={name},debug-threads=on".encode() in words:
                found.append(int(entry.name))
    return found


def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until ``condition()`` is true; fail when it is not in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.02)
