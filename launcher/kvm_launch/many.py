"""Several VMs with one command: checked and planned together, then each with its own supervisor."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from kvm_launch.hold import keeper_of
from kvm_launch.planning import read_host
from kvm_launch.run import run_planned
from kvm_launch.settle import settle
from kvm_launch.supervisors import Supervisors
from kvm_launch.together import Seat, plan_together, seats
from kvmhooks.errors import InputError, SpecError
from kvmhooks.exits import exit_code_of
from kvmhooks.host import Host
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.live.rundir import base_of, planning
from kvmhooks.live.signals import interrupt, noted
from kvmhooks.placement import Plan
from kvmhooks.placement.holding import Holding
from kvmhooks.render.picture import picture
from kvmhooks.spec import VmSpec, load_vm

Given = TypeVar("Given")


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The descriptions that are meant: a folder stands for all of its own."""
    return list(
        chain.from_iterable(
            sorted(path.glob("*.toml")) if path.is_dir() else [path] for path in paths
        )
    )


def load_all(paths: Sequence[Path]) -> list[VmSpec]:
    """Every description, or all that is wrong with any. Raises ``InputError``."""
    specs, problems = _each(paths, load_vm)
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    for name in twice:
        sources = " and ".join(spec.source for spec in specs if spec.name == name)
        problems.append(f"name: found {name!r} in {sources}, expected another for each")
    if problems:
        raise InputError("\n".join(problems))
    return specs


def run_many(
    arguments: argparse.Namespace, specs: Sequence[VmSpec], door: Door | None = None
) -> int:
    """Run them all to their ends, or with ``--detach`` until they run; the worst exit code.

    All are checked and planned before any is started, and nobody else plans until each has its
    place. A signal is passed on to each: asked once they power off, asked twice they quit.
    """
    keeper = keeper_of(Door() if door is None else door)
    host = read_host(arguments, *specs)
    specs = _settle_all(arguments, specs, host, keeper)
    base = base_of(arguments.run_dir)
    if arguments.dry_run:
        for plan in plan_together(arguments, specs, host, keeper):
            print(picture(plan), flush=True)
        return 0
    supervisors = Supervisors(is_detached=arguments.detach, out=sys.stdout)
    with noted(supervisors.signal):
        with planning(base) as supervisors.lock:
            plans = plan_together(arguments, specs, host, keeper)
            for plan, others in seats(plans):
                supervisors.start(plan.name, _supervisor(arguments, plan, others, host, door))
            supervisors.follow_to_places()
        return supervisors.follow()


def _settle_all(
    arguments: argparse.Namespace, specs: Sequence[VmSpec], host: Host, keeper: Keeper
) -> list[VmSpec]:
    """Check each, and settle its accelerator. Raises ``InputError`` with all that is missing."""

    def settled(spec: VmSpec) -> VmSpec:
        choice = settle(arguments, spec, host, keeper)
        print(f"[{spec.name}] {choice.why}", flush=True)
        return choice.spec

    found, problems = _each(specs, settled)
    if problems:
        raise InputError("\n".join(problems))
    return found


def _each(
    given: Iterable[Given], make: Callable[[Given], VmSpec]
) -> tuple[list[VmSpec], list[str]]:
    """What is made of each, and what is wrong with the others."""
    made: list[VmSpec] = []
    problems: list[str] = []
    for one in given:
        try:
            made.append(make(one))
        except SpecError as error:
            problems.append(str(error))
    return made, problems


def _supervisor(
    arguments: argparse.Namespace,
    plan: Plan,
    others: tuple[Holding, ...],
    host: Host,
    door: Door | None,
) -> Callable[[Callable[[], None], Callable[[], None] | None], int]:
    """What runs one of the VMs, in a process of its own."""

    def launch(taken: Callable[[], None], ready: Callable[[], None] | None) -> int:
        interrupt()
        return exit_code_of(
            lambda: run_planned(arguments, Seat(plan, others, taken), host, door, ready),
            interrupted="interrupted: nothing is running",
        )

    return launch
