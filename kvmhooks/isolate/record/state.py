"""The state on record: the claims that are held, and for each knob its original.

One JSON text, replaced in one step, so that a claim and the originals that it made us record are
never apart. Its format has a version: the package may be upgraded while VMs run.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.kinds.kind import KINDS, process
from kvmhooks.isolate.record import json
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    from kvmhooks.isolate.kinds.kind import Acquisition
    from kvmhooks.isolate.system.system import System

    A = TypeVar("A", bound=Acquisition)

FORMAT: Final = 3
"""The version of the JSON form; 2 is read, and written again until it is empty (``format_2``)."""

PENDING: Final = "pending"
RUNNING: Final = "running"


class Record:
    """The facts known of one knob that we hold or may hold."""

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
        """The value when it was first seen, or the one that someone else wrote since."""
        self.ours = ours
        """The value that was read back after our last write."""
        self.intent = intent
        """The goals of writes that may have been interrupted; None when none is under way.

        Several values (the steps on the way of a cpuset) are parted by ``|``.
        """
        self.identity = identity
        """The mark of this IRQ or task, which a later one with the same number has not."""
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
        """Return whether a value is one that we wrote, or may have written."""
        return current == self.ours or (
            self.intent is not None and current in self.intent.split("|")
        )

    def knows(self, current: str) -> bool:
        """Return whether a value is the original or one of ours."""
        return current == self.original or self.made(current)

    def to_line(self, key: str) -> str:
        """Return key and fields in order, parted by blanks: a host has thousands of them."""
        ours = "-" if self.ours is None else "=" + self.ours
        intent = "-" if self.intent is None else "=" + self.intent
        line = f"{key} {self.original} {ours} {intent} {self.identity} {self.note}"
        if line.count(" ") == 5 and "%" not in line:
            return line
        fields = (key, self.original, ours, intent, self.identity, self.note)
        return " ".join(field.replace("%", "%25").replace(" ", "%20") for field in fields)

    @classmethod
    def from_line(cls, line: str) -> tuple[str, Record]:
        """Read back what ``to_line`` wrote. Raises ``ValueError``."""
        fields = line.split(" ")
        if "%" in line:
            fields = [field.replace("%20", " ").replace("%25", "%") for field in fields]
        key, original, ours, intent, identity, note = fields
        return key, cls(
            original,
            ours=None if ours == "-" else ours[1:],
            intent=None if intent == "-" else intent[1:],
            identity=identity,
            note=note,
        )


class Held:
    """A claim that is held, and by which process."""

    __slots__ = (
        "claim",
        "fallback",
        "follower",
        "holder",
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
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.claim = claim
        self.holder = holder
        """The daemon while the claim is pending, QEMU once it runs."""
        self.state = state
        self.since = since
        """Counts up: the first has the say over settings that can have one value only."""
        self.fallback = fallback
        """The kernel refused this VM's isolated partitions."""
        self.warnings = warnings
        self.follower: Process | None = None
        """The process that looks after it while it runs."""
        self.pins: dict[str, str] = {}
        """The CPUs of each vCPU when it was last looked at, as CPU lists by its number."""

    @property
    def needs_follower(self) -> bool:
        """It is a VM that runs and owns CPUs."""
        return self.state == RUNNING and bool(self.claim.exclusive)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "claim": self.claim.to_json(),
            "state": self.state,
            "holder": [self.holder.pid, self.holder.start],
            "since": self.since,
            "fallback": self.fallback,
            "warnings": list(self.warnings),
            "follower": self.follower and [self.follower.pid, self.follower.start],
            "pins": self.pins,
        }

    @classmethod
    def from_json(cls, document: Any) -> Held:
        """Read back what ``to_json`` wrote. Raises ``ValueError`` and its kin."""
        pid, start = document["holder"]
        found = cls(
            _claim(document["claim"]),
            holder=Process(int(pid), int(start)),
            state=str(document["state"]),
            since=int(document["since"]),
            fallback=document["fallback"] is True,
            warnings=tuple(map(str, document["warnings"])),
        )
        found.follower = process(document.get("follower"))
        found.pins = {str(int(vcpu)): str(cpus) for vcpu, cpus in document.get("pins", {}).items()}
        return found


class State:
    """All that is on record about this boot of the host."""

    __slots__ = ("boot", "form", "held", "records", "reserved", "resources")

    def __init__(self, boot: str, form: int = FORMAT) -> None:
        self.boot = boot
        self.form = form
        """The format in which it is written."""
        self.held: dict[str, Held] = {}
        """By the claim's key, in the order in which they came."""
        self.records: dict[str, Record] = {}
        """By the knob's key."""
        self.reserved: dict[str, tuple[Claim, int]] = {}
        """By the claim's key, claims that will be made, and until when they are waited for."""
        self.resources: dict[str, dict[str, Acquisition]] = {}
        """By their kinds and their keys, resources that were acquired or are about to be."""

    def acquired(self, kind: type[A]) -> dict[str, A]:
        """Return the resources of one kind by their keys, to be changed, by the class of them."""
        return self.resources.setdefault(kind.KIND, {})  # type: ignore[return-value]

    @property
    def is_empty(self) -> bool:
        """Nothing is held and nothing remains to be restored."""
        is_restored = not (self.records or any(self.resources.values()))
        return is_restored and not (self.held or self.reserved)

    @property
    def is_owed(self) -> bool:
        """Tell whether something of the host is to be given back that nobody holds."""
        return not self.held and bool(self.records or any(map(self.owed, self.resources)))

    @property
    def is_followed(self) -> bool:
        """Tell whether a VM runs whose follower looks after all that can be done later."""
        return any(vm.needs_follower for vm in self.held.values())

    def owed(self, kind: str) -> list[str]:
        """Return the keys of the resources of one kind that are the host's again."""
        there = self.resources.get(kind)
        if not there:
            return []
        asked = {key for held in self.held.values() for key in held.claim.asks_of(kind)}
        return [key for key, found in there.items() if found.is_owed(is_asked=key in asked)]

    def to_text(self) -> str:
        """Return the JSON text."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "boot": self.boot,
            "held": {key: held.to_json() for key, held in self.held.items()},
            "resources": {
                kind: {key: found.to_json() for key, found in self.resources[kind].items()}
                for kind in KINDS
                if self.resources.get(kind)
            },
            "reserved": [[claim.to_json(), until] for claim, until in self.reserved.values()],
            "records": [record.to_line(key) for key, record in self.records.items()],
        }
        if self.form != FORMAT:
            from kvmhooks.isolate.record import format_2  # noqa: PLC0415 -- after an upgrade

            document = format_2.downgraded(document)
        return json.to_text(document)

    @classmethod
    def from_text(cls, text: str, boot: str) -> State:
        """Read back what ``to_text`` wrote; of another boot, nothing is left.

        Raises ``IsolationError`` for another format or a text that is none of ours.
        """
        try:
            document = json.from_text(text)
            if document["format"] not in (2, FORMAT):
                raise IsolationError(
                    f"/run/kvmhooks: found format {document['format']!r} of kvmhooks "
                    f"{document.get('version')!r}, expected {FORMAT}: run that version's "
                    "`kvmhooks undo --all`, or stop its VMs first"
                )
            if document["boot"] != boot:
                return cls(boot)
            state = cls(boot, document["format"])
            if state.form != FORMAT:
                from kvmhooks.isolate.record import format_2  # noqa: PLC0415 -- after an upgrade

                document = format_2.upgraded(document)
            for key, value in document["held"].items():
                state.held[key] = Held.from_json(value)
            state.records = dict(map(Record.from_line, document["records"]))
            for reserved, until in document.get("reserved", ()):
                claim = _claim(reserved)
                state.reserved[claim.key] = claim, int(until)
            for kind, several in document["resources"].items():
                acquisition = KINDS[kind].acquisition
                for key, fields in several.items():
                    acquisition.check_key(key)
                    state.acquired(acquisition)[key] = acquisition.from_json(fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise IsolationError(
                f"/run/kvmhooks/state.json: {type(error).__name__}: {error}: it is not as we wrote "
                "it; the host keeps what is set until the next boot"
            ) from error
        return state


def _claim(document: object) -> Claim:
    """Read a claim on record. Raises ``ValueError``."""
    try:
        return Claim.from_json(document)
    except IsolationError as error:
        raise ValueError(str(error)) from error


def boot_id(system: System) -> str:
    """Return the id of this boot (random(4), ``/proc/sys/kernel/random/boot_id``)."""
    try:
        return system.read("proc/sys/kernel/random/boot_id")
    except OSError:
        return ""
