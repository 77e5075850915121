"""A start and a stop gone through without touching anything: every write, in order.

The engine itself runs, behind a system whose writes stay in memory. Things that only the kernel
knows are not foreseen: which interrupts it manages, and the groups that a VM will have.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kvmhooks.isolate.kinds.kind import KINDS
from kvmhooks.isolate.knobs.resctrl import SCHEMATA, merged
from kvmhooks.isolate.record.report import FAILED, REFUSAL
from kvmhooks.isolate.record.store import RECORD, Store
from kvmhooks.isolate.registry import accepted
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.resources.resource import resource_of
from kvmhooks.isolate.system.dbus import Systemd
from kvmhooks.isolate.system.system import System

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.values import CpuSet


T = TypeVar("T")

WARNING = "warning"
"""The phase of a row that is no write: what a start would not get, or another consequence."""

_HELPER = "kvmhooks"
"""Is not run."""


class Write(NamedTuple):
    """One write that would be made."""

    phase: str
    """``prepare``, ``start``, ``started`` or ``release``; ``warning`` for what is none."""
    path: str
    """A file, or another thing that is set (``affinity of task 12``, ``systemd: user.slice``)."""
    value: str


def rehearse(claim: Claim, root: str = "/", *, is_placed: bool = False) -> list[Write]:
    """Return every write that a start and a stop of this VM would make now.

    Before them stands a row of the phase ``warning`` for each thing that would be left out, since
    it cannot be read or written.
    ``is_placed`` is as in ``Registry.prepare``.

    Raises ``IsolationError`` when the start would be refused.
    """
    system = _Rehearsal(root)
    registry = Registry(system, _Memory(root), helper=[_HELPER])
    unmet: dict[str, str] = {}
    for system.phase in ("prepare", "start", "started", "release"):
        if system.phase == "prepare":
            report = registry.prepare(claim, is_placed=is_placed)
        elif system.phase == "start":
            report = registry.start(claim)
        elif system.phase == "started":
            report = registry.started(claim)
        else:
            report = registry.release(claim.key)
        unmet |= {result.key: result.why for result in report.of(REFUSAL, FAILED)}
    return [*(Write(WARNING, key, why) for key, why in unmet.items()), *system.writes]


class _Rehearsal(System):
    """Reads the host, and remembers what would have been written over it."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.phase = ""
        self.writes: list[Write] = []
        self.units: dict[str, CpuSet] = {}
        self._files: dict[str, str] = {}
        self._tasks: dict[int, CpuSet] = {}
        self._scheduled: dict[tuple[int, str], str] = {}
        self._loaded: set[str] = set()
        self._foreseen = [resource_of(kind).foresee(self) for kind in KINDS]

    def read(self, path: str) -> str:
        parts = path.rsplit("/", 2)
        if parts[-1] == "cpuset.cpus" and parts[-2] in self.units:
            return str(self.units[parts[-2]])
        if path in self._files:
            return self._files[path]
        found = _first(foreseen.read(path) for foreseen in self._foreseen)
        return super().read(path) if found is None else found

    def names(self, path: str) -> list[str]:
        return sorted({*super().names(path), *self._more_names(path)})

    def has(self, path: str) -> bool:
        found = _first(foreseen.has(path) for foreseen in self._foreseen)
        return super().has(path) if found is None else found

    def inodes(self, path: str) -> dict[str, int]:
        return {**dict.fromkeys(self._more_names(path), 0), **super().inodes(path)}

    def _more_names(self, path: str) -> Iterator[str]:
        return (name for foreseen in self._foreseen for name in foreseen.names(path))

    def hold(self, path: str) -> str:
        return self.read(path)

    def read_back(self, path: str) -> str:
        return self.read(path)

    def write(self, path: str, text: str) -> None:
        super().read(path)
        accepted.check(self, path, text)
        self.note(f"/{path}", text)
        if path.endswith("cgroup.subtree_control"):
            present = set(self.read(path).split())
            present = present | {"cpuset"} if text == "+cpuset" else present - {"cpuset"}
            text = " ".join(sorted(present))
        elif path == SCHEMATA:
            text = merged(self.read(path), text)
        self._files[path] = text

    def write_within(self, seconds: float, path: str, text: str) -> None:
        """Note it, and have the device follow."""
        del seconds
        self.note(f"/{path}", text)
        self._files[path] = text
        for foreseen in self._foreseen:
            foreseen.write(path, text)

    def link(self, path: str) -> str:
        found = _first(foreseen.link(path) for foreseen in self._foreseen)
        return super().link(path) if found is None else found

    def load(self, module: str, seconds: float) -> None:
        del seconds
        if module not in self._loaded:
            self._loaded.add(module)
            self.note("modprobe", module)

    def unlink(self, path: str) -> None:
        self.note(f"/{path}", "(removed)")

    def remove_empty(self, path: str) -> None:
        """Remove nothing."""

    def affinity(self, tid: int) -> CpuSet:
        return self._tasks[tid] if tid in self._tasks else super().affinity(tid)

    def mask(self, tid: int) -> CpuSet:
        return self._tasks[tid] if tid in self._tasks else super().mask(tid)

    def set_affinity(self, tid: int, cpus: CpuSet) -> None:
        self.note(f"affinity of task {tid}", str(cpus))
        self._tasks[tid] = cpus

    def scheduling(self, tid: int, what: str) -> str:
        return self._scheduled.get((tid, what)) or super().scheduling(tid, what)

    def set_scheduling(self, tid: int, what: str, value: str) -> None:
        self.note(f"{what} of thread {tid}", value)
        self._scheduled[tid, what] = value

    def ask(self, path: str, text: str, timeout: float) -> str:
        if text.startswith("settings "):
            self.note(f"/{path}", text)
            return ""
        return super().ask(path, text, timeout)

    def ask_program(self, words: list[str], seconds: float) -> str:
        """Answer for `kvmhooks`, and note what it would be told to set."""
        del seconds
        _, _, thing, *wanted = words
        if wanted:
            number, *settings = wanted
            self.note(f"function {number} of {thing}", " ".join(settings))
        return _first(foreseen.ask(words) for foreseen in self._foreseen) or ""

    def systemd(self, timeout: float = 5.0) -> Systemd | None:
        return _RehearsedSystemd(self) if super().systemd(timeout) is not None else None

    def log(self, line: str, severity: int = 6) -> None:
        """Log nothing: nothing happened that a log should tell."""

    def note(self, path: str, value: str) -> None:
        """Remember a write."""
        self.writes.append(Write(self.phase, path, value))


def _first(answers: Iterable[T | None]) -> T | None:
    """Return the first answer of those that are any."""
    return next((answer for answer in answers if answer is not None), None)


class _RehearsedSystemd(Systemd):
    """systemd, told nothing."""

    def __init__(self, system: _Rehearsal) -> None:
        super().__init__("", 0)
        self._system = system

    def set_cpus(self, unit: str, cpus: CpuSet) -> None:
        self._system.note(f"systemd: {unit} AllowedCPUs", str(cpus))
        self._system.units[unit] = cpus

    def reload(self) -> None:
        self._system.note("systemd", "daemon-reload")


class _Memory(Store):
    """The state on record, and the one that would be."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._text = super().load()

    def load(self) -> str | None:
        return self._text

    def save(self, text: str) -> None:
        self._text = text

    def clear(self) -> None:
        self._text = None

    def note_release(self, key: str) -> None:
        """Note nothing."""

    def forget_release(self, key: str) -> None:
        """Forget nothing."""

    @contextmanager
    def lock(self, system: System, timeout: float, name: str = RECORD) -> Iterator[None]:
        del system, timeout, name
        yield
