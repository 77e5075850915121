"""Several VMs at once: each has a supervisor of its own, and one command follows them all."""

from __future__ import annotations

import os
import selectors
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from kvm_launch.child import PR_SET_PDEATHSIG, prctl
from kvm_launch.stop import SIGNALS
from kvmhooks.errors import InputError, QemuError, SpecError
from kvmhooks.spec import VmSpec, load_vm

CHUNK: Final = 1 << 16


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The descriptions that are meant: a folder stands for all of its own."""
    return list(
        chain.from_iterable(
            sorted(path.glob("*.toml")) if path.is_dir() else [path] for path in paths
        )
    )


def load_all(paths: Sequence[Path]) -> list[VmSpec]:
    """Every description, or all that is wrong with any. Raises ``InputError``."""
    specs: list[VmSpec] = []
    problems: list[str] = []
    for path in paths:
        try:
            specs.append(load_vm(path))
        except SpecError as error:
            problems.append(str(error))
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    for name in twice:
        sources = " and ".join(spec.source for spec in specs if spec.name == name)
        problems.append(f"name: found {name!r} in {sources}, expected another for each")
    if problems:
        raise InputError("\n".join(problems))
    return specs


class Follower:
    """The supervisors that were started: their output goes on, line by line, with their names."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._living: dict[int, str] = {}
        self._rest: dict[int, bytes] = {}

    def start(self, name: str, launch: Callable[[], int]) -> None:
        """Call ``launch`` in a process of its own session; it ends when we do."""
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            code = QemuError.exit_code
            try:
                os.setsid()
                prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
                for descriptor in (1, 2):
                    os.dup2(writer, descriptor)
                code = launch() if os.getppid() == parent else code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(writer)
        self._living[child] = name
        self._rest[reader] = b""
        self._selector.register(reader, selectors.EVENT_READ, name)

    def signal(self, number: int, _frame: object = None) -> None:
        """Pass a signal on to all that live."""
        for child in self._living:
            os.kill(child, number)

    def follow(self) -> int:
        """Pass on what they say until all have ended; the worst exit code."""
        while self._selector.get_map():
            for key, _ in self._selector.select():
                self._pass_on(key.fd, str(key.data))
        codes = []
        for child in list(self._living):
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            del self._living[child]
            codes.append(status if status >= 0 else QemuError.exit_code)
        return max(codes, default=0)

    def _pass_on(self, reader: int, name: str) -> None:
        said = os.read(reader, CHUNK)
        *lines, rest = (self._rest[reader] + said).split(b"\n")
        if not said:
            self._selector.unregister(reader)
            os.close(reader)
            lines, rest = [*lines, *([rest] if rest else [])], b""
        self._rest[reader] = rest
        for line in lines:
            sys.stdout.buffer.write(f"[{name}] ".encode() + line + b"\n")
        sys.stdout.flush()


def run_many(specs: Sequence[VmSpec], launch: Callable[[VmSpec], int]) -> int:
    """Run them all to their ends; the worst of their exit codes.

    A signal is passed on to each: asked once they power off, asked twice they quit.
    """
    follower = Follower()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for spec in specs:
            follower.start(spec.name, lambda spec=spec: launch(spec))  # type: ignore[misc]
        for number in before:
            signal.signal(number, follower.signal)
        return follower.follow()
    except KeyboardInterrupt:  # before they were followed
        follower.signal(signal.SIGTERM)
        return max(follower.follow(), 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
