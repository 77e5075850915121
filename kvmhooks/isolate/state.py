"""What is on record: the claims that are held, and for each knob its original.

One JSON text, replaced in one step, so that a claim and the originals that it made us record are
never apart. Its format has a version: the package may be upgraded while VMs run.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate import notation
from kvmhooks.isolate.claim import DEVICE_TABLES, Claim
from kvmhooks.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from kvmhooks.isolate.door import Door

FORMAT: Final = 2

PARENT, FLAGS, START = 1, 6, 19
"""Places in ``fields_of``: the parent, the ``PF_*`` flags, the start in ticks since boot."""

PENDING: Final = "pending"
RUNNING: Final = "running"


class Record:
    """What is known of one knob that we hold or may hold."""

    __slots__ = ("identity", "intent", "note", "original", "ours")

    def __init__(
        self,
        original: str,
        *,
        ours: str | None = None,
        intent: str | None = None,
        identity: str = "",
        note: str = "",
    ) -> None:
        self.original = original
        """What stood there when it was first seen, or what someone else wrote since."""
        self.ours = ours
        """What was read back after our last write."""
        self.intent = intent
        """What writes that may have been interrupted wanted; None when none is under way.

        Several values (the steps on the way of a cpuset) are parted by ``|``.
        """
        self.identity = identity
        """What tells this IRQ or task from a later one with the same number."""
        self.note = note
        """The knob's own remark."""

    def __repr__(self) -> str:
        return f"Record({self.to_line('')!r})"

    def intend(self, value: str) -> None:
        """Note that a write of ``value`` is about to be made."""
        if self.intent is None:
            self.intent = value
        elif value not in self.intent.split("|"):
            self.intent += f"|{value}"

    def made(self, current: str) -> bool:
        """Whether a value is one that we wrote, or may have written."""
        return current == self.ours or (
            self.intent is not None and current in self.intent.split("|")
        )

    def knows(self, current: str) -> bool:
        """Whether a value is the original or one of ours."""
        return current == self.original or self.made(current)

    def to_line(self, key: str) -> str:
        """Key and fields in order, parted by blanks: a host has thousands of them."""
        ours = "-" if self.ours is None else "=" + self.ours
        intent = "-" if self.intent is None else "=" + self.intent
        line = f"{key} {self.original} {ours} {intent} {self.identity} {self.note}"
        if line.count(" ") == 5 and "%" not in line:
            return line
        fields = (key, self.original, ours, intent, self.identity, self.note)
        return " ".join(one.replace("%", "%25").replace(" ", "%20") for one in fields)

    @classmethod
    def from_line(cls, line: str) -> tuple[str, Record]:
        """Read back what ``to_line`` wrote. Raises ``ValueError``."""
        fields = line.split(" ")
        if "%" in line:
            fields = [one.replace("%20", " ").replace("%25", "%") for one in fields]
        key, original, ours, intent, identity, note = fields
        return key, cls(
            original,
            ours=None if ours == "-" else ours[1:],
            intent=None if intent == "-" else intent[1:],
            identity=identity,
            note=note,
        )


class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    __slots__ = ("pid", "start")

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self.start = start

    @classmethod
    def find(cls, door: Door, pid: int) -> Process | None:
        """The process ``pid`` as it is now, or None."""
        start = start_time(door, pid)
        return None if start is None else cls(pid, start)

    def is_alive(self, door: Door) -> bool:
        """Whether this very process still exists and is no zombie."""
        return start_time(door, self.pid) == self.start


def _said(process: Process | None) -> list[int] | None:
    """A process as JSON types."""
    return None if process is None else [process.pid, process.start]


def _process(said: Any) -> Process | None:
    """Read back what ``_said`` wrote. Raises ``ValueError`` and its kin."""
    return Process(*map(int, said)) if said else None


def _pool(key: str) -> str:
    """Return the key of a pool of huge pages, ``node/size in KiB``. Raises ``ValueError``."""
    node, size = map(int, key.split("/"))
    return f"{node}/{size}"


def _require(said: dict[str, Any], *names: str) -> None:
    """Raise ``ValueError`` where one of these is missing, or there is another one."""
    if said.keys() != {*names}:
        raise ValueError(f"found {sorted(said)}, expected {sorted(names)}")


def start_time(door: Door, pid: int) -> int | None:
    """When a process started, in ticks since boot (proc_pid_stat(5)); None for none or a zombie."""
    try:
        text = door.read(f"proc/{pid}/stat")
    except OSError:
        return None
    fields = fields_of(text)
    return int(fields[START]) if len(fields) > START and fields[0] not in "ZX" else None


def name_of(stat: str) -> str:
    """A thread's name in proc_pid_stat(5); it may hold blanks and parentheses."""
    return stat[stat.find("(") + 1 : stat.rfind(")")]


def fields_of(stat: str) -> list[str]:
    """What follows the name there: its state is the first."""
    return stat[stat.rfind(")") + 2 :].split()


class Origin:
    """What a PCI function had before ``vfio-pci`` was bound to it."""

    __slots__ = ("driver", "identity", "override", "waits")

    def __init__(
        self, driver: str, override: str, *, identity: str, waits: Process | None = None
    ) -> None:
        self.driver = driver
        """Its driver; empty for none."""
        self.override = override
        """Its ``driver_override``; empty for none."""
        self.identity = identity
        """What tells it from a later one that is plugged in at the same address."""
        self.waits = waits
        """The process that has to end before it can be given back."""

    def to_json(self) -> list[Any]:
        """JSON types."""
        return [self.driver, self.override, self.identity, _said(self.waits)]

    @classmethod
    def from_json(cls, said: Any) -> Origin:
        """Read back what ``to_json`` wrote. Raises ``ValueError`` and its kin."""
        driver, override, identity, waits = said
        return cls(str(driver), str(override), identity=str(identity), waits=_process(waits))


class VfPool:
    """Virtual functions that we made, or are about to make, where there were none."""

    __slots__ = ("identity", "made", "probe", "waits", "wanted")

    def __init__(
        self,
        wanted: int,
        probe: str,
        *,
        identity: str,
        made: int = 0,
        waits: Process | None = None,
    ) -> None:
        self.wanted = wanted
        self.made = made
        """How many there were once they were made; 0 until then."""
        self.probe = probe
        """What ``sriov_drivers_autoprobe`` was; empty once that is settled."""
        self.identity = identity
        """What tells the physical function from a later one at the same address."""
        self.waits = waits
        """The process that has to end before it can be removed."""

    def to_json(self) -> list[Any]:
        """JSON types."""
        return [self.wanted, self.made, self.probe, self.identity, _said(self.waits)]

    @classmethod
    def from_json(cls, said: Any) -> VfPool:
        """Read back what ``to_json`` wrote. Raises ``ValueError`` and its kin."""
        wanted, made, probe, identity, waits = said
        return cls(
            int(wanted),
            str(probe),
            identity=str(identity),
            made=int(made),
            waits=_process(waits),
        )


class Mediated:
    """A mediated device that we made, or are about to make."""

    __slots__ = ("kind", "parent", "waits")

    def __init__(self, parent: str, kind: str, *, waits: Process | None = None) -> None:
        self.parent = parent
        """The address of the device that it is a part of."""
        self.kind = kind
        """Its type, such as ``nvidia-35``."""
        self.waits = waits
        """The process that has to end before it can be removed."""

    def to_json(self) -> list[Any]:
        """JSON types."""
        return [self.parent, self.kind, _said(self.waits)]

    @classmethod
    def from_json(cls, said: Any) -> Mediated:
        """Read back what ``to_json`` wrote. Raises ``ValueError`` and its kin."""
        parent, kind, waits = said
        return cls(str(parent), str(kind), waits=_process(waits))


class Held:
    """A claim that is held, and by which process."""

    __slots__ = (
        "claim",
        "fallback",
        "follower",
        "holder",
        "pages",
        "pins",
        "since",
        "state",
        "warnings",
    )

    def __init__(
        self,
        claim: Claim,
        *,
        holder: Process,
        state: str = PENDING,
        since: int = 0,
        fallback: bool = False,
        pages: dict[str, int] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.claim = claim
        self.holder = holder
        """The daemon while the claim is pending, QEMU once it runs."""
        self.state = state
        self.since = since
        """Counts up: who came first has the say over what can have one value only."""
        self.fallback = fallback
        """Whether the kernel refused this VM's isolated partitions."""
        self.pages = {} if pages is None else pages
        """Huge pages that were added to the pool for it, by ``node/size in KiB``."""
        self.warnings = warnings
        self.follower: Process | None = None
        """The process that looks after it while it runs."""
        self.pins: dict[str, str] = {}
        """Where each vCPU was when it was last looked at, as CPU lists by its number."""

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "claim": self.claim.to_json(),
            "state": self.state,
            "holder": [self.holder.pid, self.holder.start],
            "since": self.since,
            "fallback": self.fallback,
            "pages": self.pages,
            "warnings": list(self.warnings),
            "follower": _said(self.follower),
            "pins": self.pins,
        }

    @classmethod
    def from_json(cls, said: Any) -> Held:
        """Read back what ``to_json`` wrote. Raises ``ValueError`` and its kin."""
        pid, start = said["holder"]
        found = cls(
            Claim.from_json(said["claim"]),
            holder=Process(int(pid), int(start)),
            state=str(said["state"]),
            since=int(said["since"]),
            fallback=said["fallback"] is True,
            pages={_pool(key): int(count) for key, count in said["pages"].items()},
            warnings=tuple(map(str, said["warnings"])),
        )
        found.follower = _process(said.get("follower"))
        found.pins = {str(int(vcpu)): str(cpus) for vcpu, cpus in said.get("pins", {}).items()}
        return found


class State:
    """All that is on record about this boot of the host."""

    __slots__ = (
        "boot",
        "functions",
        "held",
        "mdevs",
        "pools",
        "records",
        "reserved",
        "vf_settings",
        "vfs",
    )

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.held: dict[str, Held] = {}
        """By the claim's key, in the order in which they came."""
        self.records: dict[str, Record] = {}
        """By the knob's key."""
        self.reserved: dict[str, tuple[Claim, int]] = {}
        """By the claim's key, claims that will be made, and until when they are waited for."""
        self.pools: dict[str, dict[str, int]] = {}
        """Huge-page pools with a change under way or a share to give back later."""
        self.functions: dict[str, Origin] = {}
        """By address, PCI functions that were bound to ``vfio-pci`` or are about to be."""
        self.vfs: dict[str, VfPool] = {}
        """By the address of the physical function."""
        self.vf_settings: dict[str, dict[str, str]] = {}
        """By ``PF/NUMBER``, what a virtual function was set to, what to, and whose it is."""
        self.mdevs: dict[str, Mediated] = {}
        """By its UUID."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held and nothing remains to be restored."""
        has_devices = any(getattr(self, table) for table in DEVICE_TABLES)
        is_settled = not (self.records or self.pools or has_devices)
        return is_settled and not (self.held or self.reserved)

    def owed(self, table: str) -> list[str]:
        """The keys of one of ``DEVICE_TABLES`` that no claim asks for any more."""
        there = getattr(self, table)
        if not there:
            return []
        asked = {key for one in self.held.values() for key in one.claim.asks_of(table)}
        return [key for key in there if key not in asked]

    def to_text(self) -> str:
        """The JSON text."""
        return notation.to_text(
            {
                "format": FORMAT,
                "version": VERSION,
                "boot": self.boot,
                "held": {key: held.to_json() for key, held in self.held.items()},
                "pools": self.pools,
                "functions": {key: origin.to_json() for key, origin in self.functions.items()},
                "vfs": {key: pool.to_json() for key, pool in self.vfs.items()},
                "vf_settings": self.vf_settings,
                "mdevs": {key: made.to_json() for key, made in self.mdevs.items()},
                "reserved": [[claim.to_json(), until] for claim, until in self.reserved.values()],
                "records": [record.to_line(key) for key, record in self.records.items()],
            }
        )

    @classmethod
    def from_text(cls, text: str, boot: str) -> State:
        """Read back what ``to_text`` wrote; of another boot, nothing is left.

        Raises ``IsolationError`` for another format or a text that is none of ours.
        """
        try:
            said = notation.from_text(text)
            if said["format"] != FORMAT:
                raise IsolationError(
                    f"/run/kvmhooks: found format {said['format']!r} of kvmhooks "
                    f"{said.get('version')!r}, expected {FORMAT}: run that version's "
                    "`kvmhooks undo --all`, or stop its VMs first"
                )
            state = cls(boot)
            if said["boot"] != boot:
                return state
            for key, one in said["held"].items():
                state.held[key] = Held.from_json(one)
            state.records = dict(map(Record.from_line, said["records"]))
            for one, until in said.get("reserved", ()):
                claim = Claim.from_json(one)
                state.reserved[claim.key] = claim, int(until)
            for key, one in said["pools"].items():
                state.pools[_pool(key)] = {str(name): int(count) for name, count in one.items()}
                _require(one, "owed", *(("before", "want") if "want" in one else ()))
            for key, one in said.get("vf_settings", {}).items():
                state.vf_settings[key] = {str(name): str(text) for name, text in one.items()}
                _require(one, "identity", "was", "set")
            state._read_devices(said)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise IsolationError(
                f"/run/kvmhooks/state.json: {type(error).__name__}: {error}: it is not as we wrote "
                "it; the host keeps what is set until the next boot"
            ) from error
        return state

    def _read_devices(self, said: Any) -> None:
        for key, one in said.get("functions", {}).items():
            self.functions[key] = Origin.from_json(one)
        for key, one in said.get("vfs", {}).items():
            self.vfs[key] = VfPool.from_json(one)
        for key, one in said.get("mdevs", {}).items():
            self.mdevs[key] = Mediated.from_json(one)


def boot_id(door: Door) -> str:
    """What tells this boot from others (random(4), ``/proc/sys/kernel/random/boot_id``)."""
    try:
        return door.read("proc/sys/kernel/random/boot_id")
    except OSError:
        return ""
