"""A VM from its spec to its end: checked, planned, shown, run, judged."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable

from kvm_launch import images, seed
from kvm_launch.console import Console
from kvm_launch.hold import keeper_of, live_claims
from kvm_launch.outcome import Outcome, as_text, judge
from kvm_launch.outlive import guests, is_written
from kvm_launch.planning import read_host, target_of
from kvm_launch.screen import screen_of
from kvm_launch.settle import settle
from kvm_launch.stop import Stop, run_whole
from kvm_launch.together import Seat
from kvm_launch.user import maker_of
from kvmhooks.errors import QemuError
from kvmhooks.host import Host
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.door import Door
from kvmhooks.live.signals import held_back
from kvmhooks.placement import Plan, plan
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
    screen = screen_of(arguments)
    keeper = keeper_of(Door() if door is None else door)
    claims: list[Claim] = []
    if arguments.host is None:
        choice = settle(arguments, spec, host, keeper)
        spec = choice.spec
        screen.line(choice.why)
        claims = live_claims(keeper)
    if not arguments.dry_run and arguments.libvirt is None:
        from kvm_launch.launch import Launch

        decided, outcome = Launch(arguments, spec, host, keeper, ready).run()
        return _told(arguments, decided, outcome)
    decided = plan(spec, host, claims, target=target_of(spec, arguments))
    screen.plan(decided)
    if arguments.dry_run:
        return 0
    gc.enable()
    from kvm_launch.through_libvirt import follow

    with held_back():
        maker = maker_of(spec)
        images.make(spec, maker)
        seed.make(spec, decided.uuid, maker)
    console = Console(guests(screen.out, "kvm-launch", is_whole=False))
    stop = Stop(arguments.timeout, spec.shutdown.timeout)
    ended = run_whole(follow(decided, arguments.libvirt, console=console, stop=stop))
    return _told(arguments, decided, judge(decided, ended))


def run_planned(
    arguments: argparse.Namespace,
    seat: Seat,
    host: Host,
    door: Door | None = None,
    ready: Callable[[], None] | None = None,
) -> int:
    """Run a VM that was checked and planned with others; give the exit code."""
    from kvm_launch.launch import Launch

    keeper = keeper_of(Door() if door is None else door)
    decided, outcome = Launch(arguments, seat.plan.spec, host, keeper, ready, seat).run()
    return _told(arguments, decided, outcome)


def _told(arguments: argparse.Namespace, decided: Plan, outcome: Outcome) -> int:
    """Print how it went; give the exit code: no 0 when the document of ``--json`` is lost."""
    if arguments.json:
        print(as_text(outcome))
    screen_of(arguments).outcome(decided, outcome)
    if arguments.json and not is_written(sys.stdout):
        return max(outcome.exit_code, QemuError.exit_code)
    return outcome.exit_code
