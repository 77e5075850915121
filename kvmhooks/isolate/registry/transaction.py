"""The record, opened under its lock, and slow changes, under locks of their own.

To find huge pages, or to have a driver let go of its device, may take the kernel seconds in which
other hooks go on. So each has its own lock; the record's is held only before and after. The holder
of that one never waits for one of these.
"""

from __future__ import annotations

from kvmhooks.isolate.kinds.kind import KINDS
from kvmhooks.isolate.record.report import FAILED, Report
from kvmhooks.isolate.record.state import State, boot_id
from kvmhooks.isolate.record.store import LockedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.resources.resource import Means, Resource
    from kvmhooks.isolate.system.system import System

LOCK_SHARE: Final = 0.8
"""The share of the budget that may be spent waiting for the lock."""

SHORTEST: Final = 0.5
"""Seconds for the record at the end of a wait for pages or devices, however long that took."""


class Transactions:
    """The record of one host, and the locks that we hold of it."""

    def __init__(self, system: System, store: Store, helper: Sequence[str] = ()) -> None:
        self.system = system
        self.store = store
        self.helper = helper
        """The words that run `kvmhooks`, for what the standard library cannot do."""
        self.owed: list[str] = []
        """The kinds of resources that were owed to the host when the record was last closed, in the
        order in which they are given back."""
        self.is_owed = False
        """It had something that nobody holds."""
        self.is_followed = False
        """It had VMs whose followers do what can be done later."""
        self._owned: set[str] = set()
        """The locks of slow changes that we hold."""

    def look(self) -> State:
        """Return the state on record, without the lock and without a change: it is one file."""
        text = self.store.load()
        boot = boot_id(self.system)
        return State(boot) if text is None else State.from_text(text, boot)

    def begin(self, budget: float) -> Transaction:
        """Hold the lock within a budget of time, with what is on record."""
        return Transaction(self, budget)

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
        with self.store.lock(self.system, wait, locks[0]):
            self._owned.add(locks[0])
            try:
                return self.owning(locks[1:], action, wait)
            finally:
                self._owned.remove(locks[0])

    def acquire(self, claim: Claim, until: float) -> None:
        """Get a claim's resources, all or none; without them the claim is dropped."""
        from kvmhooks.isolate.resources.resource import Means, resource_of  # noqa: PLC0415 -- few have any

        def begin() -> Transaction:
            return self.begin(max(until - self.system.now(), SHORTEST))

        means = Means(self.system, begin, self.save, self.helper, until)
        try:
            for kind in claim.demands:
                resource_of(kind).acquire(means, claim)
        except BaseException:
            with begin() as state:
                held = state.held.pop(claim.key, None)
                if held is not None:
                    mark_pending(state, held)
                self.save(state)
            self.release_pending(Report(), SHORTEST, SHORTEST)
            raise
        with begin():  # others' new debts meanwhile are seen
            pass

    def release_pending(
        self, report: Report, budget: float, wait: float, *, is_quick: bool = False
    ) -> Report:
        """Give back what is owed of every kind; add to a report what becomes of each.

        A thing that another hook is about to give back is left to it: without a wait, nothing is
        told. With ``is_quick`` only what takes no time is given back.
        """
        if not self.owed:
            return report
        from kvmhooks.isolate.resources.resource import Means, resource_of  # noqa: PLC0415 -- as above

        means = Means(self.system, lambda: self.begin(budget), self.save, self.helper)
        for resource in [resource_of(kind) for kind in self.owed]:
            if not (is_quick and resource.IS_SLOW):
                self._release(resource, means, report, wait)
        return report

    def _release(self, resource: Resource, means: Means, report: Report, wait: float) -> None:
        """Give back what is owed of one kind, under its lock."""

        def give_back() -> Report:
            resource.release_pending(means, report)
            return report

        seconds = wait if resource.IS_SLOW else 0.0
        try:
            self.owning([resource.LOCK], give_back, seconds)
        except LockedError as error:
            if seconds:
                report.add(resource.LABEL, FAILED, "", str(error))


def mark_pending(state: State, held: Held) -> None:
    """Owe the host what a claim has acquired."""
    if held.claim.demands:
        from kvmhooks.isolate.resources.resource import resource_of  # noqa: PLC0415 -- as above

        for kind in held.claim.demands:
            resource_of(kind).mark_pending(state, held)


def check_resources(system: System, claim: Claim, state: State) -> None:
    """Refuse resources that are another VM's alone. Raises ``IsolationError``."""
    if claim.demands:
        from kvmhooks.isolate.resources.resource import check_beside  # noqa: PLC0415 -- as above

        check_beside(system, claim, state)


class Transaction:
    """The lock, held within a budget of time, and what is on record."""

    def __init__(self, transactions: Transactions, budget: float) -> None:
        self._transactions = transactions
        self._lock = transactions.store.lock(transactions.system, budget * LOCK_SHARE)
        self._budget = budget
        self._state = State("")

    def __enter__(self) -> State:
        system = self._transactions.system
        system.deadline = system.now() + self._budget
        self._lock.__enter__()
        try:
            self._state = self._transactions.look()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self._state

    def __exit__(self, *_: object) -> None:
        state = self._state
        self._transactions.owed = [kind for kind in reversed(KINDS) if state.owed(kind)]
        self._transactions.is_owed = state.is_owed
        self._transactions.is_followed = state.is_followed
        self._lock.__exit__(None, None, None)
