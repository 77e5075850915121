"""The registry of a host: takes a VM's claim, carries it out, and takes it back.

The hook, ``kvm-launch`` and the verbs all come through here. Every transaction holds the one lock,
drops the claims of VMs that are gone, finishes what was interrupted, and leaves the host as the
claims that live want it.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.claims.administrator import BUDGET, Limits
from kvmhooks.isolate.record.report import FAILED, REFUSAL, Report
from kvmhooks.isolate.record.state import PENDING, RUNNING, Held, State
from kvmhooks.isolate.registry.admission import check, check_housekeeping, check_partitions
from kvmhooks.isolate.registry.convergence import converge_all, isolate
from kvmhooks.isolate.registry.liveness import adopt, daemon, drop_dead
from kvmhooks.isolate.registry.readings import Readings
from kvmhooks.isolate.registry.transaction import (
    LOCK_SHARE,
    Transaction,
    check_resources,
    mark_pending,
)
from kvmhooks.isolate.system.process_stat import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.system.system import System


class Registry(Readings):
    """One host's claims. Every method raises ``IsolationError`` when the claim is refused."""

    def __init__(
        self,
        system: System,
        store: Store,
        budget: float | None = None,
        helper: Sequence[str] = (),
    ) -> None:
        super().__init__(system, store, helper)
        self.budget = BUDGET if budget is None else budget
        self._most = budget
        """The seconds that whoever made us allows, where these are fewer than the host's."""
        self._is_limited = False

    def prepare(
        self, claim: Claim, holder: Process | None = None, *, is_placed: bool = False
    ) -> Report:
        """Take a claim, before the VM exists: refuse an overlap, and get its pages and devices.

        ``holder`` is the process whose end ends the claim while it is pending; the daemon that
        runs us without it. Of a daemon's VM one start ends before the next begins; a claim that
        another live process holds is somebody's who does not know of us. ``is_placed`` says that
        the VM comes into a group of the administrator's choice.
        """
        limits = self._limits()
        budget = self.budget
        locks: list[str] = []
        if claim.demands:
            from kvmhooks.isolate.resources.resource import resource_of  # noqa: PLC0415 -- few have any

            resources = [resource_of(kind) for kind in claim.demands]
            for resource in resources:
                resource.check(self.system, claim)
            budget = max(budget, *(resource.budget(limits) for resource in resources))
            locks += dict.fromkeys(resource.LOCK for resource in resources)
        until = self.system.now() + budget

        def acquire() -> Report:
            with self._transactions.begin(budget) as state:
                if not is_placed:
                    check_partitions(claim, state.held.values(), self.system)
                report = self._acquire(state, claim, holder, limits)
            if claim.demands:
                self._transactions.acquire(claim, until)
            return report

        report = self._transactions.owning(locks, acquire, budget * LOCK_SHARE)
        return self._transactions.release_pending(report, budget, 0)

    def _acquire(
        self, state: State, claim: Claim, holder: Process | None, limits: Limits
    ) -> Report:
        """Check a claim and put it on record."""
        report = self._recover(state)
        before = state.held.get(claim.key)
        if before is not None and holder is not None:
            raise IsolationError(
                f"{claim.name}: it runs already: process {before.holder.pid} holds its claim"
            )
        if before is not None:  # the same VM again: its last start never ended
            mark_pending(state, state.held.pop(claim.key))
        self._check(claim, state)
        check_housekeeping(claim, limits)
        check_resources(self.system, claim, state)
        state.reserved.pop(claim.key, None)
        self._hold(state, claim, daemon(self.system) if holder is None else holder)
        self._transactions.save(state)
        return report

    def start(self, claim: Claim) -> Report:
        """Isolate the VM's CPUs from the host: no QEMU exists yet."""
        self._limits()
        with self._begin() as state:
            if claim.key not in state.held:
                raise IsolationError(
                    f"{claim.name}: no claim was taken at `prepare`; is the hook installed for "
                    "both? see `kvmhooks hooks status`"
                )
            drop_dead(self.system, self.store, state, but=claim.key)
            report = converge_all(self.system, self.store, state)
            if claim.strict:
                self._refuse_incomplete(state, claim, report)
        return report

    def adopt(self, claim: Claim, pid: int, enter: Callable[[], None]) -> None:
        """Let the claim live from now on as long as the process ``pid``, which will be QEMU.

        ``enter`` puts it into its groups. No other transaction sees a group that is not known to be
        the VM's yet: it would be narrowed as everything else is.
        """
        with self._begin() as state:
            held = state.held.get(claim.key)
            if held is None:
                raise IsolationError(f"{claim.name}: its claim was dropped meanwhile")
            enter()
            adopt(self.system, held, pid)
            self._transactions.save(state)

    def started(self, claim: Claim | None, pid: int = 0) -> Report:
        """Isolate the VM's own groups: its threads exist. Without a claim: keep it off the others'.

        A VM whose partitions the kernel refuses is isolated by narrowing everything else.
        """
        with self._begin() as state:
            held = None if claim is None else state.held.get(claim.key)
            if held is not None:
                adopt(self.system, held, pid)
                self._reread(state, held, is_new=True)
            drop_dead(self.system, self.store, state, but=held.claim.key if held else "")
            report = isolate(self.system, self.store, state, held)
            if held is not None and held.claim.strict:
                self._refuse_incomplete(state, held.claim, report)
        return report

    def reconnect(self, claim: Claim | None) -> Report:
        """Take up the claim of a VM that runs already: libvirtd was restarted."""
        with self._begin() as state:
            if claim is not None:
                held = state.held.get(claim.key)
                if held is None:
                    self._check(claim, state)
                    held = self._hold(state, claim, daemon(self.system))
                adopt(self.system, held, 0)
                self._reread(state, held)
            drop_dead(self.system, self.store, state, but="" if claim is None else claim.key)
            return converge_all(self.system, self.store, state)

    def release(self, key: str, leave: Callable[[], None] | None = None) -> Report:
        """Drop a claim and give everything back that no other claim needs.

        ``leave`` removes the groups of a VM that has ended, before: see ``adopt``. It is noted
        before the first step, so that a transaction that fails or dies is finished by the next one.
        """
        try:
            self.store.note_release(key)
        except (IsolationError, OSError) as error:  # it may be done all the same
            self.system.log(f"{key}: {words_of(error)}", severity=4)
        with self._begin() as state:
            if leave is not None:
                leave()
            held = state.held.pop(key, None)
            if held is not None:
                mark_pending(state, held)
            drop_dead(self.system, self.store, state)
            report = converge_all(self.system, self.store, state)
        return self._give_resources(report)

    def reconcile(self) -> Report:
        """Drop the claims of VMs that are gone, and finish whatever was interrupted."""
        with self._begin() as state:
            self._reread(state, *state.held.values())
            report = self._recover(state, is_thorough=True)
        return self._give_resources(report)

    def release_pending(self, waiter: Process) -> Report | None:
        """Give back what is owed, for the process that waits; None when another one does."""
        with self._begin() as state:
            other = self.waiter()
            if other is not None and other.pid != waiter.pid:
                return None
            self.store.note_waiter(waiter.to_text())
            self._reread(state, *state.held.values())
            report = self._recover(state, is_thorough=True)
        return self._give_resources(report)

    def dismiss(self, report: Report) -> bool:
        """Tell whether nothing is owed any more after a report; then nobody waits from now on.

        Under the lock: a later debtor finds nobody waiting.
        """
        with self._begin() as state:
            is_withheld = report.is_withheld and not state.is_followed
            if report.is_incomplete or report.is_pending or state.is_owed or is_withheld:
                return False
            self.store.note_waiter("")
        return True

    def owes(self, report: Report) -> bool:
        """Tell whether a transaction with this report has left what must be tried again.

        While VMs run of which none has CPUs of its own, nobody follows what was refused.
        """
        is_withheld = report.is_withheld and not self._transactions.is_followed
        return report.is_incomplete or self._transactions.is_owed or is_withheld

    def follow(self, key: str, follower: Process) -> Report | None:
        """See to what is new for a running VM's follower; return None when it has to end.

        The CPUs of its vCPUs by now are claimed, and the devices that any VM has.
        """
        with self._begin() as state:
            drop_dead(self.system, self.store, state)
            held = state.held.get(key)
            if held is None or held.state != RUNNING:
                return None
            held.follower = follower
            self._reread(state, held)
            self._reread_devices(other for other in state.held.values() if other is not held)
            report = isolate(self.system, self.store, state, held)
        return self._transactions.release_pending(report, self.budget, 0, is_quick=True)

    def narrow(self) -> Report:
        """Narrow what has come beside the VMs since, and look at nothing else."""
        from kvmhooks.isolate.registry import late_groups  # noqa: PLC0415 -- a follower's business

        with self._begin() as state:
            return late_groups.narrow(self.system, self.store, state)

    def undo(self, key: str | None) -> Report:
        """Drop one claim, or all, though the VMs still run."""
        with self._begin() as state:
            for dropped in [key] if key is not None else list(state.held):
                held = state.held.pop(dropped, None)
                if held is not None:
                    mark_pending(state, held)
            report = converge_all(self.system, self.store, state)
        return self._give_resources(report)

    def reserve(self, claim: Claim, seconds: float) -> None:
        """Keep CPUs for a VM that is about to come; nobody else may claim them until then.

        Raises ``IsolationError`` when another has them or awaits them, or the host keeps them.
        """
        check_housekeeping(claim, self._limits())
        with self._begin() as state:
            self._check(claim, state)
            state.reserved[claim.key] = claim, int(self.system.now() + seconds)
            self._transactions.save(state)

    def loosen(self, key: str) -> None:
        """Isolate a running VM by narrowing everything else, so that its vCPUs can be pinned anew.

        From a partition the kernel lets no thread go.
        """
        with self._begin() as state:
            held = state.held.get(key)
            if held is not None:
                held.fallback = True
                converge_all(self.system, self.store, state)

    def tighten(self, key: str) -> Report:
        """Isolate a running VM where its vCPUs are now, by partitions if the kernel has them.

        If all of them went to what was reserved for it, that is its own (``affinity``).
        """
        from kvmhooks.isolate.vm.affinity import take_reserved  # noqa: PLC0415 -- few calls need it

        with self._begin() as state:
            awaited = {claim.key: claim for claim, _ in self._awaited(state)}
            state.reserved.pop(key, None)
            held = state.held.get(key)
            if held is None:
                raise IsolationError("its claim was dropped meanwhile")
            self._reread(state, held)
            if key in awaited:
                take_reserved(self.system, held, awaited[key].exclusive)
            held.fallback = False
            return isolate(self.system, self.store, state, held)

    def _limits(self) -> Limits:
        """Read the host's. Raises ``IsolationError`` for a mistake in the administrator's file."""
        limits = administrator.limits(self.system)
        self.budget = limits.budget if self._most is None else min(self._most, limits.budget)
        self._is_limited = True
        return limits

    def _begin(self) -> Transaction:
        """Hold the lock within the budget, with what is on record.

        A mistake in the administrator's file keeps nothing from being given back.
        """
        if not self._is_limited:
            self._is_limited = True
            try:
                self._limits()
            except (IsolationError, OSError) as error:
                self.system.log(words_of(error), severity=4)
        return self._transactions.begin(self.budget)

    def _give_resources(self, report: Report) -> Report:
        """Give back the resources that no claim has, and tell."""
        return self._transactions.release_pending(report, self.budget, self.budget * LOCK_SHARE)

    def _recover(self, state: State, *, is_thorough: bool = False) -> Report:
        """Leave what was interrupted behind; without an interruption, the host is not looked at."""
        is_changed = drop_dead(self.system, self.store, state) or len(state.reserved) != len(
            self._awaited(state)
        )
        is_open = any(record.intent is not None for record in state.records.values())
        is_left = bool(state.records) and not state.held
        if is_thorough or is_changed or is_open or is_left:
            return converge_all(self.system, self.store, state)
        return Report()

    def _hold(self, state: State, claim: Claim, holder: Process) -> Held:
        """Put a claim on record as the latest."""
        self.store.forget_release(claim.key)
        since = 1 + max((held.since for held in state.held.values()), default=0)
        held = state.held[claim.key] = Held(claim, holder=holder, since=since)
        return held

    def _check(self, claim: Claim, state: State) -> None:
        check(claim, state.held.values(), self._awaited(state), self.system)

    def _reread(self, state: State, *every: Held, is_new: bool = False) -> None:
        """Bring claims up to date with their VMs; one that is new has the devices claimed."""
        from kvmhooks.isolate.registry import running_vms  # noqa: PLC0415 -- most need it not

        awaited = [claim for claim, _ in self._awaited(state)]
        running_vms.reread_cpus(self.system, state, awaited, every)
        if not is_new:
            running_vms.reread_devices(self.system, every)

    def _reread_devices(self, every: Iterable[Held]) -> None:
        """Bring what VMs were given since up to date: one follower looks after all devices."""
        from kvmhooks.isolate.registry import running_vms  # noqa: PLC0415 -- as above

        running_vms.reread_devices(self.system, every)

    def _refuse_incomplete(self, state: State, claim: Claim, report: Report) -> None:
        """Give the claim back when a part of it could not be met; managed interrupts aside.

        Those the kernel itself places, and it refuses every write (EIO or EPERM).
        """
        unmet = [
            result for result in report.of(REFUSAL, FAILED) if not result.key.startswith("irq/")
        ]
        if not unmet:
            return
        mark_pending(state, state.held.pop(claim.key))
        converge_all(self.system, self.store, state)
        reasons = "; ".join(f"{result.key}: {result.why}" for result in unmet[:3])
        raise IsolationError(f"{claim.name}: strict, and {len(unmet)} could not be met: {reasons}")


__all__ = ["PENDING", "Registry"]
