"""A start and a stop gone through without touching anything: every write, in order.

The engine itself runs, behind a door whose writes stay in memory. What only the kernel knows is not
foreseen: which interrupts it manages, and the groups that a VM will have.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from kvmhooks.isolate.bus import Systemd
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.foreseen import Foreseen
from kvmhooks.isolate.functions import DEVICES
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.isolate.knobs.caches import SCHEMATA, merged
from kvmhooks.isolate.store import RECORD, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.values import CpuSet


_HELPER = "kvmhooks"
"""Is not run."""

_SETTINGS = ("mac", "vlan", "trust", "spoofchk", "rate")
_BEFORE = "(before)"
"""What stands for a setting that a function had."""


class Write(NamedTuple):
    """One write that would be made."""

    phase: str
    """``prepare``, ``start``, ``started`` or ``release``."""
    path: str
    """A file, or what else is set (``affinity of task 12``, ``systemd: user.slice``)."""
    value: str


def rehearse(claim: Claim, root: str = "/") -> list[Write]:
    """Every write that a start and a stop of this VM would make now.

    Raises ``IsolationError`` when the start would be refused.
    """
    door = _Rehearsal(root)
    keeper = Keeper(door, _Memory(root), helper=[_HELPER])
    for door.phase in ("prepare", "start", "started", "release"):
        if door.phase == "prepare":
            keeper.prepare(claim)
        elif door.phase == "start":
            keeper.start(claim)
        elif door.phase == "started":
            keeper.started(claim)
        else:
            keeper.release(claim.key)
    return door.writes


class _Rehearsal(Door):
    """Reads the host, and remembers what would have been written over it."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.phase = ""
        self.writes: list[Write] = []
        self.units: dict[str, CpuSet] = {}
        self._files: dict[str, str] = {}
        self._tasks: dict[int, CpuSet] = {}
        self._scheduled: dict[tuple[int, str], str] = {}
        self._drivers: dict[str, str] = {}
        self._foreseen = Foreseen(self)
        self._mdevs: dict[str, str] = {}
        self._settings: dict[tuple[str, str], dict[str, str]] = {}

    def read(self, path: str) -> str:
        parts = path.rsplit("/", 2)
        if parts[-1] == "cpuset.cpus" and parts[-2] in self.units:
            return str(self.units[parts[-2]])
        if path in self._files:
            return self._files[path]
        return self._foreseen.read(path) if self._foreseen.card_of(path) else super().read(path)

    def names(self, path: str) -> list[str]:
        return sorted({*super().names(path), *self._foreseen.names(path)})

    def has(self, path: str) -> bool:
        if not self._foreseen.card_of(path):
            return super().has(path)
        alone = self._foreseen.function_of(path) == path.rpartition("/")[2]
        return alone or bool(self.link(path)) or bool(self.names(path))

    def inodes(self, path: str) -> dict[str, int]:
        return {**dict.fromkeys(self._foreseen.names(path), 0), **super().inodes(path)}

    def hold(self, path: str) -> str:
        return self.read(path)

    def read_back(self, path: str) -> str:
        return self.read(path)

    def write(self, path: str, text: str) -> None:
        super().read(path)
        self.note(f"/{path}", text)
        if path.endswith("cgroup.subtree_control"):
            present = set(self.read(path).split())
            present = present | {"cpuset"} if text == "+cpuset" else present - {"cpuset"}
            text = " ".join(sorted(present))
        elif path == SCHEMATA:
            text = merged(self.read(path), text)
        self._files[path] = text

    def write_within(self, seconds: float, path: str, text: str) -> None:
        """Note it, and have the device follow: no driver hesitates here, or refuses."""
        del seconds
        self.note(f"/{path}", text)
        *above, owner, name = path.split("/")
        if name == "create":
            self._mdevs[text] = f"{above[-2]}/{owner}"
        elif name == "remove":
            del self._mdevs[owner]
        elif name == "driver_override" or name.startswith("sriov_"):
            self._files[path] = text
            if name == "sriov_numvfs":
                self._foreseen.make(owner, int(text))
        elif name == "drivers_probe":
            self._drivers[text] = self.read(f"{DEVICES}/{text}/driver_override")
        else:
            self._drivers[text] = owner if name == "bind" else ""

    def link(self, path: str) -> str:
        *_, address, name = path.split("/")
        if name == "driver" and address in self._drivers:
            return self._drivers[address]
        if name in self._mdevs:
            return f"../{self._mdevs[name].partition('/')[0]}/{name}"
        if name == "mdev_type" and address in self._mdevs:
            return self._mdevs[address]
        return super().link(path) or self._foreseen.link(path)

    def load(self, module: str, seconds: float) -> None:
        del seconds
        self.note("modprobe", module)

    def unlink(self, path: str) -> None:
        self.note(f"/{path}", "(removed)")

    def remove_empty(self, path: str) -> None:
        """Nothing is removed."""

    def affinity(self, tid: int) -> CpuSet:
        return self._tasks[tid] if tid in self._tasks else super().affinity(tid)

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
        """`kvmhooks functions`: what a function is set to at first, only the card knows."""
        del seconds
        _, _, card, *said = words
        if said:
            number, *settings = said
            self.note(f"function {number} of {card}", " ".join(settings))
            known = dict(word.split("=", 1) for word in settings)
            self._settings[card, number] = {**self._settings.get((card, number), {}), **known}
            return ""
        before = dict.fromkeys(_SETTINGS, _BEFORE)
        return "\n".join(
            " ".join([str(number), *(f"{name}={text}" for name, text in settings.items())])
            for number in range(int(self.read(f"{DEVICES}/{card}/sriov_numvfs")))
            for settings in [{**before, **self._settings.get((card, str(number)), {})}]
        )

    def systemd(self, timeout: float = 5.0) -> Systemd | None:
        return _RehearsedSystemd(self) if super().systemd(timeout) is not None else None

    def log(self, line: str, severity: int = 6) -> None:
        """Nothing happened that a log should tell."""

    def note(self, path: str, value: str) -> None:
        """Remember a write."""
        self.writes.append(Write(self.phase, path, value))


class _RehearsedSystemd(Systemd):
    """systemd, told nothing."""

    def __init__(self, door: _Rehearsal) -> None:
        super().__init__("", 0)
        self._door = door

    def set_cpus(self, unit: str, cpus: CpuSet) -> None:
        self._door.note(f"systemd: {unit} AllowedCPUs", str(cpus))
        self._door.units[unit] = cpus

    def reload(self) -> None:
        self._door.note("systemd", "daemon-reload")


class _Memory(Store):
    """What is on record, and what would be."""

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
        """Nothing is noted."""

    def forget_release(self, key: str) -> None:
        """Nor forgotten."""

    @contextmanager
    def lock(self, door: Door, timeout: float, name: str = RECORD) -> Iterator[None]:
        del door, timeout, name
        yield
