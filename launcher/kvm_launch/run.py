"""A VM from its spec to its end: checked, planned, shown, run, judged."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys

import attrs

from kvm_launch import preflight
from kvm_launch.console import Console
from kvm_launch.hold import Hold, keeper_of, live_claims
from kvm_launch.life import State
from kvm_launch.outcome import Outcome, as_text, judge
from kvm_launch.planning import base_of, read_host
from kvm_launch.record import Account
from kvm_launch.show import not_restored, outcome_lines
from kvm_launch.stop import Stop
from kvmhooks.errors import RestoreError
from kvmhooks.host import Host
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.door import Door
from kvmhooks.live import accel, emulator
from kvmhooks.live.rundir import RunDir
from kvmhooks.placement import Plan, plan
from kvmhooks.render.picture import picture
from kvmhooks.spec import VmSpec


def run(arguments: argparse.Namespace, spec: VmSpec, door: Door | None = None) -> int:
    """Run the VM, or with ``--dry-run`` only show what would be; give the exit code.

    ``door`` is the host whose CPUs are isolated: this machine without it.
    """
    host = read_host(arguments)
    say = sys.stderr if arguments.json else sys.stdout
    keeper = keeper_of(Door() if door is None else door)
    claims: list[Claim] = []
    if arguments.host is None:
        preflight.check(spec)
        choice = accel.choose(spec, host, emulator.find(spec), base_of(arguments))
        spec = choice.spec
        print(choice.why, file=say)
        claims = live_claims(keeper)
    if not arguments.dry_run and arguments.libvirt is None:
        return _run(arguments, spec, host, Hold(keeper))
    decided = plan(spec, host, claims)
    print(picture(decided), end="", file=say, flush=True)
    if arguments.dry_run:
        return 0
    gc.enable()
    from kvm_launch.through_libvirt import follow

    console, stop = _ends(arguments, spec)
    ended = asyncio.run(follow(decided, arguments.libvirt, console=console, stop=stop))
    return _told(arguments, decided, judge(decided, ended))


def _run(arguments: argparse.Namespace, spec: VmSpec, host: Host, hold: Hold) -> int:
    """Run the VM as a child of ours, with its claim on the host."""
    from kvm_launch.supervise import supervise

    console, stop = _ends(arguments, spec)
    say = sys.stderr if arguments.json else sys.stdout
    program = emulator.find(spec)
    account = Account(spec, say)
    life = account.life
    try:
        with RunDir(base_of(arguments), spec.name) as run_dir, hold:
            decided = hold.plan(spec, host)
            print(picture(decided), end="", file=say, flush=True)
            with account.kept(run_dir, decided):
                life.enter(State.PLANNED)
                if hold.claim is not None:
                    life.enter(State.CLAIMED, f"CPUs {hold.claim.exclusive}")
                if hold.omitted:
                    print(f"warning: isolation.exclusive: {hold.omitted}: threads are pinned, and "
                          "the host stays as it is", file=say)  # fmt: skip
                gc.enable()
                ended = asyncio.run(
                    supervise(
                        decided,
                        emulator=program,
                        run_dir=run_dir,
                        console=console,
                        stop=stop,
                        hold=hold,
                        account=account,
                    )
                )
    except BaseException as error:
        life.enter(State.ENDED, (str(error) or "interrupted").partition("\n")[0])
        if hold.left:
            said = [str(error) or "interrupted", *not_restored(hold.left)]
            raise RestoreError("\n".join(said)) from error
        raise
    life.enter(State.ENDED, ended.ending)
    outcome = attrs.evolve(judge(decided, ended, hold.isolated), steps=tuple(life.steps))
    return _told(arguments, decided, outcome)


def _ends(arguments: argparse.Namespace, spec: VmSpec) -> tuple[Console, Stop]:
    """Where the console goes, and what may stop the VM."""
    console = Console((sys.stderr if arguments.json else sys.stdout).buffer)
    return console, Stop(arguments.timeout, spec.shutdown.timeout)


def _told(arguments: argparse.Namespace, decided: Plan, outcome: Outcome) -> int:
    """Print how it went; give the exit code."""
    say = sys.stderr if arguments.json else sys.stdout
    if arguments.json:
        print(as_text(outcome))
    print("\n".join(outcome_lines(decided, outcome)), file=say, flush=True)
    return outcome.exit_code
