"""The protocol of every kind of resource, and the means by which it is carried out.

A resource is checked, acquired and given back; its values and their JSON are in ``kinds``. Each
step may take the kernel seconds in which other hooks go on, so whoever takes it holds the kind's
lock, and the record is open only before and after. Everything is on record before the first write:
what is there and no claim asks for is owed to the host, and the next one gives it back.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.claims.administrator import HOST
from kvmhooks.isolate.kinds.kind import KINDS
from kvmhooks.isolate.record.report import APPLIED, FAILED, REFUSAL
from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.processes import StuckError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, Final

    from kvmhooks.isolate.claims.administrator import Limits
    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.kinds.kind import Acquisition
    from kvmhooks.isolate.record.comparison import Comparison
    from kvmhooks.isolate.record.report import Report
    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.resources.foreseen import Foreseen
    from kvmhooks.isolate.system.system import System

PATIENCE: Final = 8.0
"""Seconds for one write: a driver may have to wait for its hardware."""


class Access:
    """Everything with which a resource is looked at."""

    __slots__ = ("helper", "system", "until")

    def __init__(self, system: System, helper: Sequence[str], until: float | None = None) -> None:
        self.system = system
        self.helper = helper
        """The words that run `kvmhooks`, for what the standard library cannot do."""
        self.until = until
        """When, on the system's clock, everything has to be had; None to give back."""

    def seconds(self, most: float = PATIENCE) -> float:
        """Return the time for the next step. Raises ``IsolationError`` without any."""
        if self.until is None:
            return most
        left = self.until - self.system.now()
        if left <= 0:
            raise IsolationError(
                "found no time left for it, expected some: give a start with devices more than it "
                f"has (budget_devices of [host] in /{HOST})"
            )
        return min(most, left)


class Means(Access):
    """Everything with which a resource is acquired and given back."""

    __slots__ = ("begin", "save")

    def __init__(
        self,
        system: System,
        begin: Callable[[], AbstractContextManager[State]],
        save: Callable[[State], None],
        helper: Sequence[str],
        until: float | None = None,
    ) -> None:
        super().__init__(system, helper, until)
        self.begin = begin
        """Opens the record."""
        self.save = save
        """Puts it on record as it is now."""


class Resource:
    """One kind of resource: the protocol."""

    KIND: str
    """Its name in ``KINDS``."""
    LABEL: str
    """The beginning of its keys in reports."""
    LOCK = "devices.lock"
    """Held by whoever acquires or gives back, which may take seconds. The holder of the record's
    lock never waits for this one."""
    IS_SLOW = True
    """To give it back may take seconds too, and waits for that lock; otherwise whoever holds the
    lock is left to do it."""

    def budget(self, limits: Limits) -> float:
        """Return the seconds that a start with such resources may take."""
        return limits.budget_devices

    def check(self, system: System, claim: Claim) -> None:
        """Refuse what must not be had, before anything is on record. Raises ``IsolationError``."""

    def own(self, system: System, claim: Claim) -> Sequence[str]:
        """Return the names of what is a VM's alone as long as its claim is held."""
        del system, claim
        return ()

    def foresee(self, system: System) -> Foreseen:
        """Return what a rehearsal on ``system`` takes for the host, as far as this changes it."""
        from kvmhooks.isolate.resources.foreseen import Foreseen  # noqa: PLC0415 -- none is a VM's start

        return Foreseen(system)

    def acquire(self, means: Means, claim: Claim) -> None:
        """Have everything that a claim on record asks for of this kind, under ``LOCK``.

        Raises ``IsolationError`` at the first that cannot be had: ``release_pending`` then gives
        back what was had by then.
        """
        raise NotImplementedError

    def mark_pending(self, state: State, held: Held) -> None:
        """Note that what a claim has is the host's again."""
        raise NotImplementedError

    def release_pending(self, means: Means, report: Report) -> None:
        """Give back everything that is owed, under ``LOCK``; ``report`` tells what came of each."""
        raise NotImplementedError

    def compare(
        self, access: Access, state: State, live: Sequence[Held], *, is_busy: bool
    ) -> Iterator[Comparison]:
        """Yield all that is on record of this kind beside the host, without a change.

        ``live`` are the claims of VMs that live. ``is_busy`` says that somebody holds ``LOCK``.
        """
        raise NotImplementedError


class Devices(Resource):
    """A kind of which each thing is had and given back by itself; subclasses say how."""

    GONE: str | None = None
    """Its value in reports once it was given back; None for the same as before."""
    WAITING = "still has it"
    """The business of a process for which a resource has to wait."""
    IS_QEMUS = False
    """QEMU has it open, so that it cannot be given back before QEMU has ended."""

    def own(self, system: System, claim: Claim) -> Sequence[str]:
        """Return the keys of all that it asks for."""
        del system
        return claim.asks_of(self.KIND)

    def check_there(self, system: System, claim: Claim, state: State) -> None:
        """Refuse what is not as it has to be, when all kinds before are acquired.

        Raises ``IsolationError``.
        """

    def place(self, key: str) -> str:
        """Return the file that has it, or what else is set, for people."""
        raise NotImplementedError

    def see(self, access: Access, key: str, found: Any, demand: Any) -> tuple[str, str, str] | None:
        """Return what a thing was, should be and is; None where it is no more.

        Without a ``demand`` it should be what it was. Raises ``IsolationError`` or ``OSError``.
        """
        raise NotImplementedError

    def is_open(self, found: Any) -> bool:
        """Return whether somebody has begun to make it and has not come to the end."""
        del found
        return False

    def compare(
        self, access: Access, state: State, live: Sequence[Held], *, is_busy: bool
    ) -> Iterator[Comparison]:
        from kvmhooks.isolate.resources.comparing import compared  # noqa: PLC0415 -- no hook does

        return compared(self, access, state, live, is_busy=is_busy)

    def look(self, means: Means, claim: Claim, demand: Any) -> Any:
        """Return what has to be known of a demand before the record is opened."""

    def note(self, system: System, state: State, demand: Any, seen: Any) -> bool:
        """Put on record what is about to be made; return False where it is there already."""
        raise NotImplementedError

    def make(self, means: Means, demand: Any, seen: Any) -> None:
        """Make what is on record. Raises ``IsolationError``, ``StuckError`` or ``OSError``."""
        raise NotImplementedError

    def stuck(self, demand: Any, error: StuckError) -> str:
        """Return the words for a step that does not end."""
        raise NotImplementedError

    def give_back(self, means: Means, key: str, found: Any) -> str:
        """Give one thing back; return why it stays on record, if somebody else has use of it.

        Each step leaves what the next call can go on from. Raises as ``make``.
        """
        raise NotImplementedError

    def describe(self, found: Any) -> str:
        """Return what it is, for a report."""
        raise NotImplementedError

    def acquire(self, means: Means, claim: Claim) -> None:
        """Have one after the other: looked at, on record, and only then made."""
        wanted = []
        for demand in claim.demands[self.KIND]:
            with _At(f"{claim.name}: {demand.key}"):
                wanted.append((demand, self.look(means, claim, demand)))
        with means.begin() as state:
            held = held_by(state, claim.key)
            self.check_there(means.system, held.claim, state)
            todo = []
            for demand, seen in wanted:
                with _At(f"{claim.name}: {demand.key}"):
                    if self.note(means.system, state, demand, seen):
                        todo.append((demand, seen))
            means.save(state)
        for demand, seen in todo:
            with _At(f"{claim.name}: {demand.key}"):
                self._make(means, demand, seen)

    def _make(self, means: Means, demand: Any, seen: Any) -> None:
        try:
            self.make(means, demand, seen)
        except StuckError as error:
            with means.begin() as state:
                state.resources[self.KIND][demand.key].waits = Process.find(means.system, error.pid)
                means.save(state)
            raise IsolationError(self.stuck(demand, error)) from error

    def mark_pending(self, state: State, held: Held) -> None:
        """Note which QEMU has to end before; what no claim asks for is owed without a note."""
        if self.IS_QEMUS and held.state == RUNNING:
            there = state.resources.get(self.KIND, {})
            for key in held.claim.asks_of(self.KIND):
                if key in there:
                    there[key].waits = held.holder

    def release_pending(self, means: Means, report: Report) -> None:
        """Give back one after the other; those that have to wait stay on record."""
        with means.begin() as state:
            due = {key: state.resources[self.KIND][key] for key in state.owed(self.KIND)}
        done: list[str] = []
        stuck: dict[str, Process | None] = {}
        for key, found in due.items():
            row, value = f"{self.LABEL}/{key}", self.describe(found)
            try:
                self.check_waits(means.system, found)
                reason = self.give_back(means, key, found)
            except StuckError as error:
                stuck[key] = Process.find(means.system, error.pid)
                report.add(row, FAILED, value, str(error))
            except (IsolationError, OSError) as error:
                report.add(row, FAILED, value, words_of(error))
            else:
                if reason:
                    report.add(row, REFUSAL, value, reason)
                else:
                    report.add(row, APPLIED, value if self.GONE is None else self.GONE)
                    done.append(key)
        self._conclude(means, done, stuck)

    def check_waits(self, system: System, found: Acquisition, more: str = "") -> None:
        """Raise ``IsolationError`` while a process has it that has to end before."""
        if found.waits is not None and found.waits.is_alive(system):
            raise IsolationError(f"process {found.waits.pid} {self.WAITING}{more}")

    def _conclude(self, means: Means, done: list[str], stuck: dict[str, Process | None]) -> None:
        """Forget what was given back, and note which processes the rest has to wait for."""
        if not done and not stuck:
            return
        with means.begin() as state:
            there = state.resources.get(self.KIND, {})
            for key in done:
                there.pop(key, None)
            for key, process in stuck.items():
                if key in there:
                    there[key].waits = process
            means.save(state)


class _At:
    """The place that an error is about is the beginning of its text."""

    __slots__ = ("_place",)

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (IsolationError, OSError)):
            raise IsolationError(f"{self._place}: {words_of(error)}") from error


def resource_of(kind: str) -> Resource:
    """Return what acts on a kind."""
    path = f"kvmhooks.isolate.resources.{KINDS[kind].resource}"
    found: Resource = __import__(path, fromlist=["RESOURCE"]).RESOURCE
    return found


def check_beside(system: System, claim: Claim, state: State) -> None:
    """Refuse what is another VM's alone: nothing is on record yet. Raises ``IsolationError``."""
    owners = owners_of(system, claim, state)
    for name in _own(system, claim):
        if name in owners:
            raise IsolationError(
                f"{claim.name}: {name}: it is {owners[name]}'s: stop that, or choose another"
            )


def owners_of(system: System, claim: Claim, state: State) -> dict[str, str]:
    """Return whose everything is that is another VM's alone, by its name."""
    return {
        name: other.claim.name
        for key, other in state.held.items()
        if key != claim.key
        for name in (*other.claim.devices, *_own(system, other.claim))
    }


def _own(system: System, claim: Claim) -> list[str]:
    return [name for kind in claim.demands for name in resource_of(kind).own(system, claim)]


def held_by(state: State, key: str) -> Held:
    """Return the claim. Raises ``IsolationError`` if it was dropped while nobody had the record."""
    if key not in state.held:
        raise IsolationError(f"{key}: its claim was given back meanwhile (`kvmhooks undo`)")
    return state.held[key]
