"""A VM as a child of ours, from its plan to its end, and again if that is its policy."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from kvm_launch import images, seed
from kvm_launch.console import Console
from kvm_launch.hold import Hold
from kvm_launch.life import State
from kvm_launch.outcome import Outcome, judge
from kvm_launch.planning import target_of
from kvm_launch.record import Account, pinned
from kvm_launch.restart import wait_of
from kvm_launch.show import not_restored, outcome_lines
from kvm_launch.stop import Stop
from kvm_launch.supervise import supervise
from kvm_launch.user import user_of
from kvmhooks.errors import QemuError, RestoreError
from kvmhooks.host import Host
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.live import emulator
from kvmhooks.live.rundir import RunDir, base_of, planning
from kvmhooks.placement import Plan
from kvmhooks.render.picture import picture
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
    ) -> None:
        self._arguments = arguments
        self._spec = spec
        self._host = host
        self._keeper = keeper
        self._say = sys.stderr if arguments.json else sys.stdout
        self._program: Path = emulator.find(spec)
        self._target = target_of(spec, arguments)
        self._account = Account(spec, self._say, ready)

    def run(self) -> tuple[Plan, Outcome]:
        """Run it to its last end. Raises ``KvmhooksError`` when that was no outcome of its own."""
        waited = 0.0
        with (
            RunDir(base_of(self._arguments.run_dir), self._spec.name) as run_dir,
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
                    is_asked = asyncio.run(Stop(None, 0).is_asked_within(wait))
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
        hold, life = Hold(self._keeper), self._account.life
        first = len(life.steps)
        decided = None
        try:
            with hold:
                decided = self._decide(hold)
                self._begin(decided, hold)
                ended = asyncio.run(
                    supervise(
                        decided,
                        emulator=self._program,
                        run_dir=run_dir,
                        console=self._console(),
                        stop=stop,
                        hold=hold,
                        account=self._account,
                    )
                )
        except BaseException as error:
            life.enter(State.ENDED, (str(error) or "interrupted").partition("\n")[0])
            stop.was_asked |= not isinstance(error, Exception)
            if hold.left:
                said = [str(error) or "interrupted", *not_restored(hold.left)]
                return decided, None, RestoreError("\n".join(said))
            if isinstance(error, QemuError):
                return decided, None, error
            raise
        life.enter(State.ENDED, ended.ending)
        outcome = judge(decided, ended, hold.isolated)
        return decided, attrs.evolve(outcome, steps=tuple(life.steps[first:])), None

    def _decide(self, hold: Hold) -> Plan:
        """Plan around the VMs that run, and tell the next one what this one has taken."""
        base = base_of(self._arguments.run_dir)
        with planning(base):
            decided = hold.plan(self._spec, self._host, list(pinned(base)), self._target)
            self._account.planned(decided)
        return decided

    def _begin(self, decided: Plan, hold: Hold) -> None:
        """Tell what was decided and claimed, and make what the VM needs."""
        print(picture(decided), end="", file=self._say, flush=True)
        if hold.claim is not None:
            cpus = f"CPUs {hold.claim.exclusive}" if hold.claim.exclusive else ""
            held = (cpus, *hold.claim.bound)
            self._account.life.enter(State.CLAIMED, ", ".join(filter(None, held)))
        if hold.omitted and decided.exclusive:
            print(f"warning: isolation.exclusive: {hold.omitted}: threads are pinned, and the host "
                  "stays as it is", file=self._say)  # fmt: skip
        user = user_of(self._spec)
        for path in images.make(self._spec, user):
            print(f"image: {path} was made", file=self._say)
        seed.make(self._spec, decided.uuid, user)
        gc.enable()

    def _tell(
        self,
        decided: Plan | None,
        outcome: Outcome | None,
        error: QemuError | RestoreError | None,
        wait: float,
    ) -> None:
        """Tell how a life went that is not the last."""
        if decided is not None and outcome is not None:
            print("\n".join(outcome_lines(decided, outcome)), file=self._say)
        if error is not None:
            print(error, file=sys.stderr)
        print(f"restart: in {wait:g} s, as run.restart says", file=self._say, flush=True)

    def _console(self) -> Console:
        return Console(self._say.buffer)
