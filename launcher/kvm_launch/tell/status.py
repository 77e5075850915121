"""The record of a VM that runs, in its run directory, for the other commands of its owner."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, get_origin

from attrs import asdict, evolve, field, fields, frozen, resolve_types

from kvm_launch.tell.notify import ServiceManager
from kvm_launch.tell.states import Life, Step, VmState
from kvmhooks import files
from kvmhooks.errors import LaunchError, ValueFormatError
from kvmhooks.isolate.system.process_stat import start_time
from kvmhooks.isolate.system.system import System
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.qemu.run_dir import RunDir, is_free, unreadable
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from kvm_launch.tell.screen import Screen
    from kvmhooks.placement import Plan
    from kvmhooks.spec import VmSpec

NAME: Final = "status.json"

MOST_BYTES: Final = 1 << 16
"""A record is a page at most."""

NOTE_SECONDS: Final = 1.0
"""The interval of the record's writing for what leads to no other state."""

MOST_SECONDS: Final = 9e9
"""No time on record is longer: it is in 2255, and ``select`` takes not much more (2**63 ns)."""

UNKNOWN: Final = "unknown"
"""The state of a VM whose record cannot be read."""

MARGIN_SECONDS: Final = 60
"""The time that QEMU's end and the host's restoration may take beyond the guest's own."""


@frozen(kw_only=True)
class VmRecord:
    """One VM, as its supervisor knows it."""

    name: str
    source: str
    """Its file."""
    state: str = VmState.PLANNED
    why: str = ""
    since: float = 0
    """The time when it came to this state, in seconds since 1970."""
    noted: float = 0
    """The time of ``why``, which may be later: something happened and led to no other state."""
    supervisor: int = 0
    supervisor_start: int = 0
    """In ticks since boot: no later process with the same number is taken for it."""
    patience: float = 0
    """The seconds that it may take to end after it was asked to; 0 in records of before."""
    qemu: int = 0
    cpus: str = ""
    """The CPUs where its threads may run."""
    exclusive: str = ""
    """The CPUs among those that are its own."""
    dedicated: str = ""
    """On which of those no other VM's vCPU is put."""
    uuid: str = ""
    twin: bool = False
    """It holds its resources as a second one of its kind: it came here from the first."""
    holding: dict[str, Any] = field(factory=dict)
    """Everything that it holds of the host, for the plans of others (``inventory.usage``)."""

    def after(self, step: Step) -> Self:
        """Return the record after a step of the VM's life."""
        since = self.since if self.since and step.state == self.state else step.at
        return evolve(self, state=str(step.state), why=step.why, since=since, noted=step.at)

    def at(self, plan: Plan) -> Self:
        """Return the record of the VM where it was planned."""
        return evolve(
            self,
            cpus=str(plan.cpus),
            exclusive=str(plan.exclusive),
            dedicated=str(plan.dedicated_cpus),
            uuid=plan.uuid,
            holding=of_plan(plan).to_json(),
        )

    def save(self, run_dir: RunDir) -> None:
        """Replace the record in one step. Raises ``LaunchError``."""
        run_dir.write(NAME, json.dumps(asdict(self)))

    @property
    def is_followed(self) -> bool:
        """Its supervisor lives."""
        return start_time(System(), self.supervisor) == self.supervisor_start


class StatusReporter:
    """Reporter of each step of a VM's life as it is reached: to a person, and in the run directory.

    With ``ready``, which is called when the guest runs, nobody sees what is said from there on: it
    goes to the system's log.
    """

    def __init__(
        self, spec: VmSpec, screen: Screen, ready: Callable[[], None] | None = None
    ) -> None:
        pid = os.getpid()
        self.life: Final = Life(self._tell)
        self._screen = screen
        self._ready = ready
        self._is_up = spec.run.ready == "running"
        self._run_dir: RunDir | None = None
        self._manager = ServiceManager()
        self._is_behind = False
        """The record could not be replaced."""
        self._written_at = float("-inf")
        self._is_due = False
        """A timer is set that writes the record."""
        self._patience = spec.shutdown.timeout + MARGIN_SECONDS
        self._record = VmRecord(
            name=spec.name,
            source=Path(spec.source).name,
            supervisor=pid,
            supervisor_start=start_time(System(), pid) or 0,
            patience=self._patience,
        )

    @contextmanager
    def kept(self, run_dir: RunDir) -> Iterator[None]:
        """Keep the record in ``run_dir`` while the context lasts."""
        self._run_dir = run_dir
        self._record = evolve(self._record, name=run_dir.path.name)
        try:
            yield
        finally:
            self._run_dir = None

    def _tell(self, step: Step) -> None:
        self._screen.step(step)
        if step.state == self._record.state:
            self._keep_soon(self._record.after(step))
        else:
            self._keep(self._record.after(step))
        status = str(step)
        if self._ready is not None:
            System().log(f"{self._record.name}: {status}")
        if step.state is VmState.RUNNING and self._is_up:
            self._tell_ready(status)
        elif step.state is VmState.SHUTTING_DOWN:
            microseconds = self._patience * 1_000_000
            self._manager.tell(STATUS=status, EXTEND_TIMEOUT_USEC=microseconds)
        else:
            self._manager.tell(STATUS=status)

    @property
    def is_service(self) -> bool:
        """A service manager has started us."""
        return self._manager.is_there

    def _tell_ready(self, status: str) -> None:
        if self._ready is not None:
            self._ready()
        self._manager.tell(READY=1, STATUS=status)

    def up(self) -> None:
        """Note that the guest's agent answers."""
        self._is_up = True
        self.life.report("the guest's agent answers")

    def warn(self, what: str) -> None:
        """Tell a person of something that is less than was asked for."""
        self._screen.line(f"warning: {what}")

    def planned(self, plan: Plan) -> None:
        """Note that it is decided where it lives."""
        self._record = self._record.at(plan)
        self.life.enter(VmState.PLANNED)

    def moved(self, plan: Plan) -> None:
        """Note that it lives elsewhere now."""
        self._keep(self._record.at(plan))

    def incoming(self, *, is_second_instance: bool) -> None:
        """Note that it comes from another QEMU of this host, with its name, perhaps its claim."""
        self._record = evolve(self._record, twin=is_second_instance)

    def renamed(self) -> None:
        """Note that its directory has another name."""
        assert self._run_dir is not None
        self._keep(evolve(self._record, name=self._run_dir.path.name))

    def started(self, qemu: int) -> None:
        """Note that its QEMU is there."""
        self._keep(evolve(self._record, qemu=qemu))

    def _keep_soon(self, record: VmRecord) -> None:
        """Keep the record after a note: so often and no more, and the last note in any case."""
        self._record = record
        wait = self._written_at + NOTE_SECONDS - time.monotonic()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # in a thread, or before there is a loop: few notes are told there
            loop = None
        if loop is None or wait <= 0 or not record.qemu:  # who may not start has to be told
            self._keep(record)
        elif not self._is_due:
            self._is_due = True
            loop.call_later(wait, lambda: self._keep(self._record))

    def _keep(self, record: VmRecord) -> None:
        """Keep the record. Raises ``LaunchError`` as long as there is no QEMU that it would end."""
        self._record, self._is_due = record, False
        if self._run_dir is None:
            return
        self._written_at = time.monotonic()
        try:
            record.save(self._run_dir)
        except LaunchError as error:
            if record.state == VmState.ENDED:
                return  # the directory goes with it
            if not record.qemu:
                raise
            if not self._is_behind:
                self.warn(f"the answer of `kvm-launch status` is not up to date: {error}")
            self._is_behind = True
        else:
            self._is_behind = False


def running(base: Path) -> Iterator[VmRecord]:
    """Give the VMs of this user that run, by name; one whose supervisor has died is passed over.

    Raises ``LaunchError`` for a directory that cannot be read.
    """
    for name in _names(base):
        record = _read(base / name)
        if record is not None and record.is_followed:
            yield record


def listed(base: Path) -> Iterator[VmRecord]:
    """Give the VMs that run, and as unknown those that hold their lock without a record to read.

    Raises ``LaunchError`` as ``running`` does.
    """
    for name in _names(base):
        record = _read(base / name)
        if record is None and _is_held(base, name):
            yield VmRecord(name=name, source="", state=UNKNOWN)
        elif record is not None and record.is_followed:
            yield record


def _names(base: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(base) if not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LaunchError(
            f"{base}: {error.strerror}: expected a directory of this user's own"
        ) from error


def _is_held(base: Path, name: str) -> bool:
    """Return whether somebody holds the lock of a VM's directory; what has no lock is none."""
    try:
        return not is_free(base, name)
    except OSError:
        return False


def find(base: Path, name: str) -> VmRecord:
    """Return the VM ``name`` that runs. Raises ``LaunchError`` without one."""
    found = {record.name: record for record in running(base)}
    if name not in found:
        path = base / name / NAME
        if name in _names(base) and path.exists() and _is_held(base, name):
            raise LaunchError(unreadable(path))
        others = ", ".join(found) or "none"
        raise LaunchError(f"found no VM {name!r} that runs, expected one of: {others}")
    return found[name]


def _read(directory: Path) -> VmRecord | None:
    """Return what stands in a VM's directory, if it is ours; it may vanish at any moment.

    None for what no supervisor writes. Another version of kvm-launch may have written it: keys that
    are not known here are passed over, and a key that it lacked has its default. So keys are only
    added, and keep their meaning.
    """
    try:
        document: Any = json.loads(
            files.read(directory / NAME, MOST_BYTES, owner=os.geteuid(), follows=False)
        )
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("name") != directory.name:
        return None
    kinds = {field.name: field.type for field in fields(resolve_types(VmRecord))}
    known = {key: value for key, value in document.items() if key in kinds}
    is_typed = all(_is_a(value, kinds[key]) for key, value in known.items())
    if not is_typed or "source" not in known:
        return None
    record = VmRecord(**known)
    return record if _is_sound(record) else None


def _is_sound(record: VmRecord) -> bool:
    """Return whether times are finite (JSON has ``Infinity`` here), and sets of CPUs are sets."""
    try:
        for text in (record.cpus, record.exclusive, record.dedicated):
            CpuSet.parse(text)
    except ValueFormatError:
        return False
    return all(0 <= at < MOST_SECONDS for at in (record.since, record.noted, record.patience))


def _is_a(value: object, kind: type[Any] | None) -> bool:
    """Return whether a value of JSON is of a field's type; a whole number is a ``float`` too."""
    return type(value) in {kind, get_origin(kind)} or (kind is float and type(value) is int)
