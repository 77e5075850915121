"""A VM from its spec to its end: checked, planned, shown, run, judged."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys

from kvm_launch import preflight
from kvm_launch.console import Console
from kvm_launch.outcome import Ended, as_text, judge
from kvm_launch.planning import base_of, read_host
from kvm_launch.show import outcome_lines
from kvm_launch.stop import Stop
from kvmhooks.live import accel, emulator
from kvmhooks.live.rundir import RunDir
from kvmhooks.placement import Plan, plan
from kvmhooks.render.picture import picture
from kvmhooks.spec import VmSpec


def run(arguments: argparse.Namespace, spec: VmSpec) -> int:
    """Run the VM, or with ``--dry-run`` only show what would be; give the exit code."""
    host = read_host(arguments)
    say = sys.stderr if arguments.json else sys.stdout
    if arguments.host is None:
        preflight.check(spec)
        choice = accel.choose(spec, host, emulator.find(spec), base_of(arguments))
        spec = choice.spec
        print(choice.why, file=say)
    decided = plan(spec, host)
    print(picture(decided), end="", file=say, flush=True)
    if arguments.dry_run:
        return 0
    if decided.spec.isolation.exclusive and arguments.libvirt is None:
        print("warning: this release pins the threads and leaves the host as it is", file=say)
    gc.enable()
    outcome = judge(decided, _run(arguments, decided))
    if arguments.json:
        print(as_text(outcome))
    print("\n".join(outcome_lines(decided, outcome)), file=say, flush=True)
    return outcome.exit_code


def _run(arguments: argparse.Namespace, decided: Plan) -> Ended:
    console = Console((sys.stderr if arguments.json else sys.stdout).buffer)
    stop = Stop(arguments.timeout, decided.spec.shutdown.timeout)
    if arguments.libvirt is not None:
        from kvm_launch.through_libvirt import follow

        return asyncio.run(follow(decided, arguments.libvirt, console=console, stop=stop))
    from kvm_launch.supervise import supervise

    program = emulator.find(decided.spec)
    with RunDir(base_of(arguments), decided.name) as run_dir:
        return asyncio.run(
            supervise(decided, emulator=program, run_dir=run_dir, console=console, stop=stop)
        )
