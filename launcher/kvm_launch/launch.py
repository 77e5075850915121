"""A VM as a child of ours, from its plan to its end, and again if that is its policy."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import attrs

from kvm_launch import images, keeping, seed
from kvm_launch.console import Console
from kvm_launch.hold import Hold, live_claims
from kvm_launch.life import State
from kvm_launch.migration import Receiver
from kvm_launch.outcome import Outcome, judge
from kvm_launch.outlive import guests
from kvm_launch.planning import read_host, target_of
from kvm_launch.record import Account, pinned
from kvm_launch.restart import wait_of
from kvm_launch.screen import screen_of, work_of
from kvm_launch.show import not_restored
from kvm_launch.stop import Stop, run_whole
from kvm_launch.supervise import supervise
from kvm_launch.together import Seat
from kvm_launch.user import maker_of
from kvmhooks.errors import QemuError, RestoreError
from kvmhooks.host import Host
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.live.rundir import RunDir, base_of, planning
from kvmhooks.live.signals import held_back
from kvmhooks.placement import Plan, scheduler_of
from kvmhooks.spec import VmSpec


class Launch:
    """Runs one VM: each time it starts it is planned anew, and claims anew."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        spec: VmSpec,
        host: Host,
        keeper: Keeper,
        ready: Callable[[], None] | None = None,
        seat: Seat | None = None,
    ) -> None:
        self._arguments = arguments
        self._spec = spec
        self._host = host
        self._keeper = keeper
        self._screen = screen_of(arguments)
        base = base_of(arguments.run_dir)
        self._receiver = Receiver(base, spec.name) if arguments.migrate else None
        self._target = target_of(spec, arguments)
        self._account = Account(spec, self._screen, ready)
        self._seat = seat

    def run(self) -> tuple[Plan, Outcome]:
        """Run it to its last end. Raises ``KvmhooksError`` when that was no outcome of its own."""
        waited = 0.0
        name: str = self._spec.name
        taken = ""
        if self._receiver is not None:
            taken = f"{name}: found a migration of it under way, expected none"
            name = self._receiver.directory
        with (
            RunDir(base_of(self._arguments.run_dir), name, taken) as run_dir,
            self._account.kept(run_dir),
        ):
            while True:
                stop = Stop(self._arguments.timeout, self._spec.shutdown.timeout)
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
        if outcome is None:
            assert error is not None
            raise error
        assert decided is not None
        return decided, outcome

    def _live(
        self, run_dir: RunDir, stop: Stop
    ) -> tuple[Plan | None, Outcome | None, QemuError | RestoreError | None]:
        """One life: its plan and its outcome, or what went wrong with QEMU or the host.

        Raises ``KvmhooksError`` for what was refused.
        """
        hold, life = Hold(self._keeper, survey=self._survey), self._account.life
        receiver, self._receiver = self._receiver, None  # the first time only
        hold.is_service = self._account.is_service
        hold.arrives = receiver is not None
        hold.is_twin = receiver is not None and receiver.is_twin
        first = len(life.steps)
        decided = None
        try:
            with hold:
                self._screen.working("planning")
                hold.claims = lambda plan: self._screen.working(work_of(plan))
                decided = self._decide(hold)
                self._account.arrives(twin=hold.is_twin)
                if receiver is not None:
                    decided = receiver.fitted(decided)
                self._begin(decided, hold, arrives=receiver is not None)
                ended = run_whole(
                    supervise(
                        decided,
                        receiver=receiver,
                        run_dir=run_dir,
                        console=self._console(),
                        stop=stop,
                        hold=hold,
                        account=self._account,
                    )
                )
        except BaseException as error:
            life.enter(State.ENDED, (str(error) or "interrupted").partition("\n")[0])
            stop.was_asked |= hold.was_asked or not isinstance(error, Exception)
            if hold.left:
                said = [str(error) or "interrupted", *not_restored(hold.left)]
                return decided, None, RestoreError("\n".join(said))
            if isinstance(error, QemuError) and (receiver is None or receiver.has_arrived):
                return decided, None, error  # else it runs where it was: nothing is restarted
            raise
        stop.was_asked |= hold.was_asked
        life.enter(State.ENDED, ended.ending)
        outcome = judge(decided, ended, hold.isolated, has_booted=receiver is None)
        return decided, attrs.evolve(outcome, steps=tuple(life.steps[first:])), None

    def _decide(self, hold: Hold) -> Plan:
        """Plan around the VMs that run, and tell the next one what this one has taken."""
        base = base_of(self._arguments.run_dir)
        seat, self._seat = self._seat, None  # the first time only
        # Whoever has planned a seat lets nobody else plan meanwhile.
        with planning(base) if seat is None else nullcontext():
            there = hold.foreign(pinned(base), self._spec)
            others = there if seat is None else seat.beside(there)
            made = None if seat is None else seat.plan
            decided = hold.plan(self._spec, self._host, others, self._target, made)
            self._account.planned(decided)
        if seat is not None:
            seat.taken()
        return decided

    @contextmanager
    def _survey(self) -> Iterator[tuple[Host, list[Claim]]]:
        """The host as it is now and what the VMs on it hold; nobody else plans meanwhile."""
        base = base_of(self._arguments.run_dir)
        with planning(base):
            host = read_host(self._arguments, self._spec)
            yield host, [*live_claims(self._keeper), *pinned(base)]

    def _begin(self, decided: Plan, hold: Hold, *, arrives: bool) -> None:
        """Tell what was decided and claimed, and make what the VM needs that is not there yet."""
        self._screen.plan(decided)
        if hold.claim is not None:
            cpus = f"CPUs {hold.claim.exclusive}" if hold.claim.exclusive else ""
            held = (cpus, *hold.claim.bound)
            self._account.life.enter(State.CLAIMED, ", ".join(filter(None, held)))
        stays = f"{hold.omitted}: threads are pinned, and the host stays as it is"
        takes = "a real-time class takes CPUs of its own (isolation.exclusive)"
        warnings = {
            f"isolation.exclusive: {stays}": hold.omitted and decided.exclusive,
            f"tuning.vcpus.scheduler: left out: {takes}": scheduler_of(decided)
            and not hold.has_cpus,
            f"tuning: left out: {hold.unlimited}": hold.unlimited,
        }
        for warning, is_due in warnings.items():
            if is_due:
                self._account.warn(warning)
        gc.enable()
        if arrives:
            return
        user = maker_of(self._spec)
        with held_back():  # what is kept beyond this VM's life is whole or not there
            for path in images.make(self._spec, user):
                self._screen.line(f"image: {path} was made")
            for path in keeping.make(self._spec, user):
                self._screen.line(f"kept: {path} was made")
            seed.make(self._spec, decided.uuid, user)

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
        is_typed = self._arguments.console
        out = guests(self._screen.out, "kvm-launch", is_whole=is_typed)
        return Console(out, is_typed=is_typed)
