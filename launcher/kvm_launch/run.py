"""A VM from its spec to its end: checked, planned, shown, run, judged."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import Callable

from kvm_launch import images, preflight, seed
from kvm_launch.console import Console
from kvm_launch.hold import keeper_of, live_claims, unable
from kvm_launch.outcome import Outcome, as_text, judge
from kvm_launch.planning import read_host, target_of
from kvm_launch.show import outcome_lines
from kvm_launch.stop import Stop
from kvm_launch.user import user_of
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.door import Door
from kvmhooks.live import accel, emulator
from kvmhooks.live.rundir import base_of
from kvmhooks.placement import Plan, plan
from kvmhooks.render.picture import picture
from kvmhooks.spec import VmSpec


def run(
    arguments: argparse.Namespace,
    spec: VmSpec,
    door: Door | None = None,
    ready: Callable[[], None] | None = None,
) -> int:
    """Run the VM, or with ``--dry-run`` only show what would be; give the exit code.

    ``door`` is the host whose CPUs are isolated: this machine without it. ``ready`` is called when
    the guest runs.
    """
    host = read_host(arguments, spec)
    say = sys.stderr if arguments.json else sys.stdout
    keeper = keeper_of(Door() if door is None else door)
    claims: list[Claim] = []
    if arguments.host is None:
        # libvirt gives its user the files that a VM needs.
        has_libvirt = arguments.libvirt is not None
        user = None if has_libvirt else user_of(spec)
        binds = has_libvirt or not unable(keeper.door)
        preflight.check(spec, user, has_libvirt=has_libvirt, binds=binds)
        images.check(spec)
        seed.check(spec)
        choice = accel.choose(spec, host, emulator.find(spec), base_of(arguments.run_dir))
        spec = choice.spec
        preflight.check_accel(spec, user)
        print(choice.why, file=say)
        claims = live_claims(keeper)
    if not arguments.dry_run and arguments.libvirt is None:
        from kvm_launch.launch import Launch

        decided, outcome = Launch(arguments, spec, host, keeper, ready).run()
        return _told(arguments, decided, outcome)
    decided = plan(spec, host, claims, target=target_of(spec, arguments))
    print(picture(decided), end="", file=say, flush=True)
    if arguments.dry_run:
        return 0
    gc.enable()
    from kvm_launch.through_libvirt import follow

    images.make(spec, None)
    seed.make(spec, decided.uuid, None)
    console = Console((sys.stderr if arguments.json else sys.stdout).buffer)
    stop = Stop(arguments.timeout, spec.shutdown.timeout)
    ended = asyncio.run(follow(decided, arguments.libvirt, console=console, stop=stop))
    return _told(arguments, decided, judge(decided, ended))


def _told(arguments: argparse.Namespace, decided: Plan, outcome: Outcome) -> int:
    """Print how it went; give the exit code."""
    say = sys.stderr if arguments.json else sys.stdout
    if arguments.json:
        print(as_text(outcome))
    print("\n".join(outcome_lines(decided, outcome)), file=say, flush=True)
    return outcome.exit_code
