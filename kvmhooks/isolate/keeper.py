"""The keeper of a host: takes a VM's claim, carries it out, and takes it back.

The hook, ``kvm-launch`` and the verbs all come through here. Every entry holds the one lock, drops
the claims of VMs that are gone, finishes what was interrupted, and leaves the host as the claims
that live want it.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate import configuration, pool
from kvmhooks.isolate.admission import check, check_housekeeping
from kvmhooks.isolate.configuration import BUDGET, Limits
from kvmhooks.isolate.groups import LIBVIRT, Groups, libvirt_pid, sweep
from kvmhooks.isolate.knob import View
from kvmhooks.isolate.ledger import LOCK_SHARE, Entry, Ledger, owe
from kvmhooks.isolate.report import FAILED, REFUSAL, Report, Result
from kvmhooks.isolate.state import (
    PARENT,
    PENDING,
    RUNNING,
    Held,
    Process,
    State,
    fields_of,
    name_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.store import Store

DAEMONS: Final = ("libvirtd", "virtqemud")


class Keeper:
    """One host's claims. Every method raises ``IsolationError`` when the claim is refused."""

    def __init__(
        self,
        door: Door,
        store: Store,
        budget: float | None = None,
        helper: Sequence[str] = (),
    ) -> None:
        self.door = door
        self.store = store
        self.budget = BUDGET if budget is None else budget
        self._is_told = budget is not None
        self._ledger = Ledger(door, store, helper)

    def prepare(self, claim: Claim, holder: Process | None = None) -> Report:
        """Take a claim, before the VM exists: refuse an overlap, and get its pages and devices.

        ``holder`` is the process whose end ends the claim while it is pending; the daemon that
        runs us without it. Of a daemon's VM one start ends before the next begins; a claim that
        another live process holds is somebody's who does not know of us.
        """
        limits = self._limits()
        locks: list[str] = []
        if claim.hugepages:
            self.budget = max(self.budget, limits.budget_hugepages)
            locks.append(pool.LOCK)
        if claim.has_devices:
            from kvmhooks.isolate import functions, uses  # noqa: PLC0415 -- few VMs have devices

            uses.check(self.door, claim)
            self.budget = max(self.budget, limits.budget_devices)
            locks.append(functions.LOCK)
        until = self.door.now() + self.budget

        def take() -> Report:
            with self._entry() as state:
                report = self._take(state, claim, holder, limits)
            if locks:
                self._ledger.take(claim, until)
            return report

        report = self._ledger.owning(locks, take, self.budget * LOCK_SHARE)
        return self._ledger.give_devices(report, self.budget, 0)

    def _take(self, state: State, claim: Claim, holder: Process | None, limits: Limits) -> Report:
        """Check a claim and put it on record."""
        report = self._recover(state)
        before = state.held.get(claim.key)
        if before is not None and holder is not None:
            raise IsolationError(
                f"{claim.name}: it runs already: process {before.holder.pid} holds its claim"
            )
        if before is not None:  # the same VM again: its last start never ended
            owe(state, state.held.pop(claim.key))
        self._check(claim, state)
        check_housekeeping(claim, limits)
        state.reserved.pop(claim.key, None)
        self._hold(state, claim, self._daemon() if holder is None else holder)
        self._ledger.save(state)
        return report

    def start(self, claim: Claim) -> Report:
        """Isolate the VM's CPUs from the host: no QEMU exists yet."""
        self._limits()
        with self._entry() as state:
            if claim.key not in state.held:
                raise IsolationError(
                    f"{claim.name}: no claim was taken at `prepare`; is the hook installed for "
                    "both? see `kvmhooks hooks status`"
                )
            self._drop_dead(state, but=claim.key)
            report = self._converge(state)
            if claim.strict:
                self._refuse_incomplete(state, claim, report)
        return report

    def adopt(self, claim: Claim, pid: int, enter: Callable[[], None]) -> None:
        """From now on the claim lives as long as the process ``pid``, which will be QEMU.

        ``enter`` puts it into its groups. No other entry sees a group that is not known to be the
        VM's yet: it would be narrowed as everything else is.
        """
        with self._entry() as state:
            held = state.held.get(claim.key)
            if held is None:
                raise IsolationError(f"{claim.name}: its claim was dropped meanwhile")
            enter()
            self._adopt(held, pid)
            self._ledger.save(state)

    def started(self, claim: Claim | None, pid: int = 0) -> Report:
        """Isolate the VM's own groups: its threads exist. Without a claim: keep it off the others'.

        A VM whose partitions the kernel refuses is isolated by narrowing everything else.
        """
        with self._entry() as state:
            held = None if claim is None else state.held.get(claim.key)
            if held is not None:
                self._adopt(held, pid)
                self._reread(state, held, is_new=True)
            self._drop_dead(state, but=held.claim.key if held else "")
            report = self._isolate(state, held)
            if held is not None and held.claim.strict:
                self._refuse_incomplete(state, held.claim, report)
        return report

    def reconnect(self, claim: Claim | None) -> Report:
        """Take up the claim of a VM that runs already: libvirtd was restarted."""
        with self._entry() as state:
            if claim is not None:
                held = state.held.get(claim.key)
                if held is None:
                    self._check(claim, state)
                    held = self._hold(state, claim, self._daemon())
                self._adopt(held, 0)
                self._reread(state, held)
            self._drop_dead(state, but="" if claim is None else claim.key)
            return self._converge(state)

    def release(self, key: str, leave: Callable[[], None] | None = None) -> Report:
        """Drop a claim and give everything back that no other claim needs.

        ``leave`` removes the groups of a VM that has ended, before: see ``adopt``. It is noted
        before the first step, so that an entry that fails or dies is finished by the next one.
        """
        try:
            self.store.note_release(key)
        except (IsolationError, OSError) as error:  # it may be done all the same
            self.door.log(f"{key}: {error}", severity=4)
        with self._entry() as state:
            if leave is not None:
                leave()
            held = state.held.pop(key, None)
            if held is not None:
                owe(state, held)
            self._drop_dead(state)
            report = self._converge(state)
        return self._give_devices(report)

    def reconcile(self) -> Report:
        """Drop the claims of VMs that are gone, and finish whatever was interrupted."""
        with self._entry() as state:
            self._reread(state, *state.held.values())
            report = self._recover(state, is_thorough=True)
        return self._give_devices(report)

    def follow(self, key: str, follower: Process) -> Report | None:
        """What a running VM's follower calls when something is new; None when it has to end.

        Where the vCPUs are by now is what is claimed.
        """
        with self._entry() as state:
            self._drop_dead(state)
            held = state.held.get(key)
            if held is None or held.state != RUNNING:
                return None
            held.follower = follower
            self._reread(state, held)
            return self._isolate(state, held)

    def undo(self, key: str | None) -> Report:
        """Drop one claim, or all, though the VMs still run."""
        with self._entry() as state:
            for one in [key] if key is not None else list(state.held):
                held = state.held.pop(one, None)
                if held is not None:
                    owe(state, held)
            report = self._converge(state)
        return self._give_devices(report)

    def claims(self) -> list[Claim]:
        """The claims of VMs that live or are awaited, without the lock and without a change."""
        state = self.look()
        ended = self.store.released()
        held = [one.claim for one in state.held.values() if self._is_live(one, ended)]
        return held + [claim for claim, _ in self._awaited(state) if claim.key not in state.held]

    def reserve(self, claim: Claim, seconds: float) -> None:
        """Keep CPUs for a VM that is about to come; nobody else may claim them until then.

        Raises ``IsolationError`` when another has them or awaits them.
        """
        with self._entry() as state:
            self._check(claim, state)
            state.reserved[claim.key] = claim, int(self.door.now() + seconds)
            self._ledger.save(state)

    def loosen(self, key: str) -> None:
        """Isolate a running VM by narrowing everything else, so that its vCPUs can be pinned anew.

        From a partition the kernel lets no thread go.
        """
        with self._entry() as state:
            held = state.held.get(key)
            if held is not None:
                held.fallback = True
                self._converge(state)

    def tighten(self, key: str) -> Report:
        """Isolate a running VM where its vCPUs are now, by partitions if the kernel has them."""
        with self._entry() as state:
            state.reserved.pop(key, None)
            held = state.held.get(key)
            if held is None:
                raise IsolationError("its claim was dropped meanwhile")
            self._reread(state, held)
            held.fallback = False
            return self._isolate(state, held)

    def _awaited(self, state: State) -> list[tuple[Claim, int]]:
        """What is reserved and has not expired; the rest is forgotten."""
        now = self.door.now()
        state.reserved = {key: one for key, one in state.reserved.items() if now < one[1]}
        return list(state.reserved.values())

    def left_over(self, report: Report) -> list[Result]:
        """What should be as it was before and is not, after a claim was given back.

        While other VMs live, what the kernel refuses is refused to them.
        """
        state = self.look()
        refused = [] if state.held else report.of(REFUSAL)
        return [*report.of(FAILED), *(one for one in refused if one.key in state.records)]

    def look(self) -> State:
        """What is on record, without the lock and without a change."""
        return self._ledger.look()

    def _limits(self) -> Limits:
        """The host's, read where a VM of ours starts; whoever made us may set the time."""
        limits = configuration.limits(self.door)
        if not self._is_told:
            self.budget = limits.budget
        return limits

    def _entry(self) -> Entry:
        """Hold the lock within the budget, with what is on record."""
        return self._ledger.entry(self.budget)

    def _give_devices(self, report: Report) -> Report:
        """Give back the devices that no claim has, and tell."""
        return self._ledger.give_devices(report, self.budget, self.budget * LOCK_SHARE)

    def _recover(self, state: State, *, is_thorough: bool = False) -> Report:
        """Leave what was interrupted behind; without an interruption, the host is not looked at."""
        is_changed = self._drop_dead(state) or len(state.reserved) != len(self._awaited(state))
        is_open = any(record.intent is not None for record in state.records.values())
        is_left = bool(state.records) and not state.held
        if is_thorough or is_changed or is_open or is_left or state.pools:
            return self._converge(state)
        return Report()

    def _isolate(self, state: State, held: Held | None) -> Report:
        """Converge; where a VM's partitions are refused, again by narrowing everything else."""
        report = self._converge(state)
        if held is not None and self._was_refused(held, report):
            held.fallback = True
            report = self._converge(state)
        return report

    def _converge(self, state: State) -> Report:
        # Most of a `prepare` needs none of it, and libvirt waits.
        from kvmhooks.isolate.engine import converge  # noqa: PLC0415
        from kvmhooks.isolate.knobs import discover  # noqa: PLC0415

        self._ledger.settle_pages(state)
        view = View.read(self.door, state.held.values())
        groups = Groups.find(self.door, view.held)
        knobs = discover(self.door, view, groups, state.records)
        report = converge(self.door, self.store, state, knobs, view)
        self._forget_released(state)
        return report

    def _forget_released(self, state: State) -> None:
        """Remove the notes of releases that are done; one that stays is of no account."""
        try:
            for key in self.store.released() - state.held.keys():
                self.store.forget_release(key)
        except (IsolationError, OSError) as error:
            self.door.log(str(error), severity=4)

    def _hold(self, state: State, claim: Claim, holder: Process) -> Held:
        """Put a claim on record as the latest."""
        self.store.forget_release(claim.key)
        since = 1 + max((one.since for one in state.held.values()), default=0)
        held = state.held[claim.key] = Held(claim, holder=holder, since=since)
        return held

    def _check(self, claim: Claim, state: State) -> None:
        check(claim, state.held.values(), self._awaited(state), self.door)

    def _drop_dead(self, state: State, but: str = "") -> bool:
        """Drop the claims whose VM is gone, and tell whether there were any."""
        ended = self.store.released() if state.held else set()
        held = [(key, one) for key, one in state.held.items() if key != but]
        dead = [key for key, one in held if not self._is_live(one, ended)]
        for key in dead:
            gone = state.held.pop(key)
            owe(state, gone)
            if gone.claim.driver != LIBVIRT:
                sweep(self.door)
        return bool(dead)

    def _is_live(self, held: Held, ended: set[str]) -> bool:
        """A running VM lives as long as QEMU; a pending one as long as its daemon or its QEMU.

        ``ended`` are the keys of those that were released.
        """
        if held.claim.key in ended:
            return False
        if held.holder.is_alive(self.door):
            return True
        if held.state == RUNNING:
            return False
        pid = libvirt_pid(self.door, held.claim)
        return bool(pid) and Process.find(self.door, pid) is not None

    def _adopt(self, held: Held, pid: int) -> None:
        """From now on the claim lives as long as QEMU does."""
        process = Process.find(self.door, pid or libvirt_pid(self.door, held.claim))
        if process is not None:
            held.holder, held.state = process, RUNNING

    def _reread(self, state: State, *every: Held, is_new: bool = False) -> None:
        """Bring claims up to date with where their vCPUs are, and which devices they have.

        A VM that is new has those that were claimed.
        """
        from kvmhooks.isolate import attached, pins  # noqa: PLC0415 -- most entries need it not

        for held in every:
            if held.state == RUNNING and held.claim.exclusive and held.holder.is_alive(self.door):
                view = View.read(self.door, [one for one in state.held.values() if one is not held])
                pins.reread(self.door, held, view.exclusive, view.online)
                if not is_new:
                    attached.reread(self.door, held)

    def _daemon(self) -> Process:
        """The daemon that runs us: our parent, or above it where a script calls the hook."""
        pid = parent = self.door.parent()
        for _ in range(4):
            try:
                text = self.door.read(f"proc/{pid}/stat")
            except OSError:
                break
            if name_of(text) in DAEMONS:
                parent = pid
                break
            pid = int(fields_of(text)[PARENT])
        return Process.find(self.door, parent) or Process(parent, 0)

    @staticmethod
    def _was_refused(held: Held, report: Report) -> bool:
        """Whether the kernel refused a partition of this VM, or left it invalid."""
        if held.fallback or not held.claim.exclusive:
            return False
        return any(
            result.key.startswith(("partition/", "exclusive/"))
            for result in report.of(REFUSAL, FAILED)
        )

    def _refuse_incomplete(self, state: State, claim: Claim, report: Report) -> None:
        """Give the claim back when a part of it could not be met; managed interrupts aside.

        Those the kernel itself places, and it refuses every write (EIO or EPERM).
        """
        unmet = [one for one in report.of(REFUSAL, FAILED) if not one.key.startswith("irq/")]
        if not unmet:
            return
        owe(state, state.held.pop(claim.key))
        self._converge(state)
        said = "; ".join(f"{one.key}: {one.why}" for one in unmet[:3])
        raise IsolationError(f"{claim.name}: strict, and {len(unmet)} could not be met: {said}")


__all__ = ["PENDING", "Keeper"]
