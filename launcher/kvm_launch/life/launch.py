"""A VM as a child of ours, from its plan to its end, and again if that is its policy."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import attrs

from kvm_launch.host.claimed_plan import plan_and_claim
from kvm_launch.host.lease import Lease
from kvm_launch.life.migration import Receiver
from kvm_launch.life.restart import wait_of
from kvm_launch.life.stop import Stop, run_whole
from kvm_launch.life.supervise import supervise
from kvm_launch.options import LaunchOptions
from kvm_launch.prepare import cloud_init, images, persistent_state, shared_memory
from kvm_launch.prepare.claim_warnings import claim_warnings
from kvm_launch.prepare.planning import sources_of
from kvm_launch.prepare.reservation import Reservation
from kvm_launch.prepare.user import maker_of
from kvm_launch.talk.console import Console
from kvm_launch.talk.tty import guests
from kvm_launch.tell.outcome import Outcome, judge, not_restored
from kvm_launch.tell.screen import work_of
from kvm_launch.tell.screens import screen_of
from kvm_launch.tell.states import VmState
from kvm_launch.tell.status import StatusReporter
from kvmhooks.errors import QemuError, RestoreError, words_of
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.placement import Plan, scheduler_of
from kvmhooks.qemu.run_dir import RunDir, base_of, planning
from kvmhooks.signals import held_back
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.tuning import policy_of
from kvmhooks.survey.survey import look_again, refresh


class Launch:
    """Runs one VM: each time it starts it is planned anew, and claims anew."""

    def __init__(
        self,
        options: LaunchOptions,
        spec: VmSpec,
        inventory: Inventory,
        registry: Registry,
        ready: Callable[[], None] | None = None,
        reservation: Reservation | None = None,
    ) -> None:
        self._options = options
        self._spec = spec
        self._inventory = inventory
        self._sources = sources_of(options, registry.system)
        self._registry = registry
        self._screen = screen_of(options)
        base = base_of(options.run_dir)
        self._receiver = Receiver(base, spec.name) if options.is_migration else None
        self._reporter = StatusReporter(spec, self._screen, ready)
        self._reservation = reservation

    def run(self) -> tuple[Plan, Outcome]:
        """Run it to its last end. Raises ``KvmhooksError`` when that was no outcome of its own."""
        waited = 0.0
        name: str = self._spec.name
        taken = ""
        if self._receiver is not None:
            taken = f"{name}: found a migration of it under way, expected none"
            name = self._receiver.directory
        with (
            RunDir(base_of(self._options.run_dir), name, taken) as run_dir,
            self._reporter.kept(run_dir),
        ):
            while True:
                stop = Stop(self._options.timeout, self._spec.shutdown.timeout)
                begun = time.monotonic()
                decided, outcome, error = self._live(run_dir, stop)
                wait = wait_of(
                    self._spec.run,
                    exit_code=outcome.exit_code if outcome else error.exit_code if error else 0,
                    was_asked=stop.was_asked,
                    lasted=time.monotonic() - begun,
                    waited=waited,
                )
                if wait is None:
                    break
                try:
                    self._tell(decided, outcome, error, wait)
                    is_asked = run_whole(Stop(None, 0).is_asked_within(wait))
                except KeyboardInterrupt:  # before anybody listened
                    is_asked = True
                if is_asked:
                    break
                waited = wait
                run_dir.clear()
                self._inventory = refresh(self._inventory, self._sources, self._spec)
        if outcome is None:
            assert error is not None
            raise error
        assert decided is not None
        return decided, outcome

    def _live(
        self, run_dir: RunDir, stop: Stop
    ) -> tuple[Plan | None, Outcome | None, QemuError | RestoreError | None]:
        """Live one life: return its plan and its outcome, or what went wrong with QEMU or the host.

        Raises ``KvmhooksError`` for what was refused.
        """
        receiver, self._receiver = self._receiver, None  # the first time only
        is_second_instance = receiver is not None and receiver.is_second_instance
        lease = Lease(
            self._registry,
            survey=self._survey,
            on_claiming=lambda plan: self._screen.working(work_of(plan)),
            is_service=self._reporter.is_service,
            is_incoming=receiver is not None,
            is_second_instance=is_second_instance,
        )
        life = self._reporter.life
        first = len(life.steps)
        decided = None
        try:
            with lease:
                self._screen.working("planning")
                decided = self._decide(lease)
                self._reporter.incoming(is_second_instance=is_second_instance)
                if receiver is not None:
                    decided = receiver.fitted(decided)
                self._begin(decided, lease, is_incoming=receiver is not None)
                ended = run_whole(
                    supervise(
                        decided,
                        receiver=receiver,
                        run_dir=run_dir,
                        console=self._console(),
                        stop=stop,
                        lease=lease,
                        reporter=self._reporter,
                    )
                )
        except BaseException as error:
            life.enter(VmState.ENDED, (words_of(error) or "interrupted").partition("\n")[0])
            stop.was_asked |= lease.was_asked or not isinstance(error, Exception)
            if lease.left:
                messages = [words_of(error) or "interrupted", *not_restored(lease.left)]
                return decided, None, RestoreError("\n".join(messages))
            if isinstance(error, QemuError) and (receiver is None or receiver.has_arrived):
                return decided, None, error  # else it runs where it was: nothing is restarted
            raise
        stop.was_asked |= lease.was_asked
        life.enter(VmState.ENDED, ended.ending)
        outcome = judge(decided, ended, lease.isolated, has_booted=receiver is None)
        return decided, attrs.evolve(outcome, steps=tuple(life.steps[first:])), None

    def _decide(self, lease: Lease) -> Plan:
        """Plan around the VMs that run, and tell the next one what this one has taken."""
        base = base_of(self._options.run_dir)
        reservation, self._reservation = self._reservation, None  # the first time only
        # Who made a reservation lets nobody else plan meanwhile.
        with planning(base) if reservation is None else nullcontext():
            others = () if reservation is None else reservation.others

            def look() -> Inventory:
                return look_again(self._inventory, self._sources, self._spec).beside(others)

            made = None if reservation is None else reservation.plan
            decided = plan_and_claim(lease, self._spec, look, made)
            self._reporter.planned(decided)
        if reservation is not None:
            reservation.taken()
        return decided

    @contextmanager
    def _survey(self) -> Iterator[Inventory]:
        """Give the host as it is now and what the VMs on it hold; nobody else plans meanwhile."""
        with planning(base_of(self._options.run_dir)):
            yield refresh(self._inventory, self._sources, self._spec)

    def _begin(self, decided: Plan, lease: Lease, *, is_incoming: bool) -> None:
        """Tell what was decided and claimed, and make what the VM needs that is not there yet."""
        self._screen.plan(decided)
        if lease.claim is not None:
            cpus = f"CPUs {lease.claim.exclusive}" if lease.claim.exclusive else ""
            held = (cpus, *lease.claim.asks_of(FunctionDemand.KIND))
            self._reporter.life.enter(VmState.CLAIMED, ", ".join(filter(None, held)))
        stays = f"{lease.omitted}: threads are pinned, and the host stays as it is"
        takes = "a real-time class takes CPUs of its own (isolation.exclusive)"
        warnings = {
            f"isolation.exclusive: {stays}": lease.omitted and decided.exclusive,
            f"policy: {lease.omitted}: the host stays as it is": lease.omitted
            and (policy_of(decided.spec) or decided.administered),
            f"tuning.vcpus.scheduler: left out: {takes}": scheduler_of(decided)
            and not lease.has_cpus,
            f"tuning: left out: {lease.unlimited}": lease.unlimited,
        }
        units = [] if lease.claim is None else claim_warnings(self._registry, [lease.claim])
        for warning, is_due in (warnings | dict.fromkeys(units, True)).items():
            if is_due:
                self._reporter.warn(warning)
        gc.enable()
        if is_incoming:
            return
        user = maker_of(self._spec)
        with held_back():  # what is kept beyond this VM's life is whole or not there
            for path in images.make(self._spec, user):
                self._screen.line(f"image: {path} was made")
            for path in persistent_state.make(self._spec, user):
                self._screen.line(f"kept: {path} was made")
            for path in shared_memory.make(self._spec, user):
                self._screen.line(f"shared memory: {path} was made")
            cloud_init.make(self._spec, decided.uuid, user)

    def _tell(
        self,
        decided: Plan | None,
        outcome: Outcome | None,
        error: QemuError | RestoreError | None,
        wait: float,
    ) -> None:
        """Tell how a life went that is not the last."""
        if decided is not None and outcome is not None:
            self._screen.outcome(decided, outcome)
        if error is not None:
            print(error, file=sys.stderr)
        self._screen.line(f"restart: in {wait:g} s, as run.restart says")

    def _console(self) -> Console:
        is_typed = self._options.has_console
        out = guests(self._screen.out, "kvm-launch", is_whole=is_typed)
        return Console(out, is_typed=is_typed)
