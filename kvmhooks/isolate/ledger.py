"""The record, opened under its lock, and what takes long, under locks of its own.

To find huge pages, or to have a driver let go of its device, may take the kernel seconds in which
other hooks go on. So each has its own lock; the record's is held only before and after. Who holds
that one never waits for one of these.
"""

from __future__ import annotations

from kvmhooks.isolate import pool
from kvmhooks.isolate.claim import DEVICE_TABLES
from kvmhooks.isolate.report import FAILED, Report
from kvmhooks.isolate.state import State, boot_id
from kvmhooks.isolate.store import LockedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.state import Held
    from kvmhooks.isolate.store import Store

LOCK_SHARE: Final = 0.8
"""How much of the budget may be spent waiting for the lock."""

SHORTEST: Final = 0.5
"""Seconds for the record at the end of a wait for pages or devices, however long that took."""


class Ledger:
    """What is on record of one host, and the locks that we hold of it."""

    def __init__(self, door: Door, store: Store, helper: Sequence[str] = ()) -> None:
        self.door = door
        self.store = store
        self.helper = helper
        """The words that run `kvmhooks`, for what the standard library cannot do."""
        self.owes_devices = False
        """Whether the record, when it was last closed, had devices that no claim has any more."""
        self._owned: set[str] = set()
        """Which of the locks of slow changes we hold."""

    def look(self) -> State:
        """What is on record, without the lock and without a change: the state is one file."""
        text = self.store.load()
        boot = boot_id(self.door)
        return State(boot) if text is None else State.from_text(text, boot)

    def entry(self, budget: float) -> Entry:
        """Hold the lock within a budget of time, with what is on record."""
        return Entry(self, budget)

    def save(self, state: State) -> None:
        """Put a state on record."""
        if state.is_empty:
            self.store.clear()
        else:
            self.store.save(state.to_text())

    def owning(self, locks: list[str], action: Callable[[], Report], wait: float) -> Report:
        """Do something under locks of slow changes, each waited for no longer than this."""
        locks = [name for name in locks if name not in self._owned]
        if not locks:
            return action()
        with self.store.lock(self.door, wait, locks[0]):
            self._owned.add(locks[0])
            try:
                return self.owning(locks[1:], action, wait)
            finally:
                self._owned.remove(locks[0])

    def take(self, claim: Claim, until: float) -> None:
        """Get a claim's huge pages and devices, all or none; without them the claim is dropped."""

        def entry() -> Entry:
            return self.entry(max(until - self.door.now(), SHORTEST))

        try:
            if claim.hugepages:
                pool.take(self.door, self.store, entry, claim.key)
            if claim.pools:
                from kvmhooks.isolate import sriov  # noqa: PLC0415 -- few VMs have devices

                sriov.take(self.door, self.store, entry, claim, until)
            if claim.vf_settings:
                from kvmhooks.isolate import vf_settings  # noqa: PLC0415 -- as above

                vf_settings.take(self.door, self.store, entry, claim, self.helper, until)
            if claim.bound:
                from kvmhooks.isolate import functions  # noqa: PLC0415 -- as above

                functions.take(self.door, self.store, entry, claim.key, until)
            if claim.mdevs:
                from kvmhooks.isolate import mediated  # noqa: PLC0415 -- as above

                mediated.take(self.door, self.store, entry, claim, until)
        except BaseException:
            with entry() as state:
                held = state.held.pop(claim.key, None)
                if held is not None:
                    owe(state, held)
                self.settle_pages(state)
                self.save(state)
            self.give_devices(Report(), SHORTEST, SHORTEST)
            raise
        with entry() as state:  # what others came to owe meanwhile
            self.settle_pages(state)
            self.save(state)

    def settle_pages(self, state: State) -> None:
        """Give back huge pages that are owed; a hook that is changing the pools does it itself."""
        if not state.pools:
            return
        if pool.LOCK in self._owned:
            pool.settle(self.door, self.store, state)
            return
        try:
            with self.store.lock(self.door, 0, pool.LOCK):
                pool.settle(self.door, self.store, state)
        except LockedError:
            return

    def give_devices(self, report: Report, budget: float, wait: float) -> Report:
        """Give back the devices that no claim has; add to a report what becomes of each.

        Without a wait nothing is told of what another hook is about to give back.
        """
        if not self.owes_devices:
            return report
        from kvmhooks.isolate import (  # noqa: PLC0415 -- as above
            functions,
            mediated,
            sriov,
            vf_settings,
        )

        def entry() -> Entry:
            return self.entry(budget)

        def settle() -> Report:
            mediated.settle(self.door, self.store, entry, report)
            functions.settle(self.door, self.store, entry, report)
            vf_settings.settle(self.door, self.store, entry, report, self.helper)
            sriov.settle(self.door, self.store, entry, report)
            return report

        try:
            return self.owning([functions.LOCK], settle, wait)
        except LockedError as error:
            if wait:
                report.add("pci", FAILED, "", str(error))
            return report


def owe(state: State, held: Held) -> None:
    """A claim's share of what is counted, and its devices, are the host's again."""
    pool.owe(state, held)
    if held.claim.bound:
        from kvmhooks.isolate import functions  # noqa: PLC0415 -- few VMs have devices

        functions.owe(state, held)
    if held.claim.mdevs:
        from kvmhooks.isolate import mediated  # noqa: PLC0415 -- as above

        mediated.owe(state, held)


class Entry:
    """The lock, held within a budget of time, and what is on record."""

    def __init__(self, ledger: Ledger, budget: float) -> None:
        self._ledger = ledger
        self._lock = ledger.store.lock(ledger.door, budget * LOCK_SHARE)
        self._budget = budget
        self._state = State("")

    def __enter__(self) -> State:
        door = self._ledger.door
        door.deadline = door.now() + self._budget
        self._lock.__enter__()
        try:
            self._state = self._ledger.look()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self._state

    def __exit__(self, *_: object) -> None:
        state = self._state
        self._ledger.owes_devices = any(map(state.owed, DEVICE_TABLES))
        self._lock.__exit__(None, None, None)
