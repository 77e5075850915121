"""Several VMs with one command: checked and planned together, then each with its own supervisor."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from kvm_launch.host.isolation import registry_of
from kvm_launch.life.run import run_planned
from kvm_launch.many.supervisors import Supervisors
from kvm_launch.options import LaunchOptions
from kvm_launch.prepare.claim_warnings import claim_warnings
from kvm_launch.prepare.planning import accelerator_line, sources_of, tell
from kvm_launch.prepare.preparation import prepare
from kvm_launch.prepare.reservation import Reservation, plan_together, with_others
from kvmhooks.errors import InputError, SpecError, UsageError
from kvmhooks.exits import exit_code_of
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
from kvmhooks.placement.claim import claim
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.run_dir import base_of, planning
from kvmhooks.signals import interrupt, noted
from kvmhooks.spec import VmSpec, load_vm
from kvmhooks.survey.survey import look_again, take

Given = TypeVar("Given")


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Return the descriptions that are meant: a folder stands for all of its own.

    Raises ``UsageError`` for one that has none.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"{path}: found no NAME.toml in it, expected one for each VM")
        files += found
    return files


def load_all(paths: Sequence[Path]) -> list[VmSpec]:
    """Return every description, or all that is wrong with any. Raises ``InputError``."""
    specs, problems = _each(paths, load_vm)
    shared = [None if (memory := each.shared_memory) is None else memory.name for each in specs]
    problems += [*_twice("name", specs, [each.name for each in specs])]
    problems += [*_twice("shared_memory.name", specs, shared)]
    if problems:
        raise InputError("\n".join(problems))
    return specs


def _twice(at: str, specs: Sequence[VmSpec], names: Sequence[str | None]) -> Iterator[str]:
    """Yield each name that several VMs have where each has to have its own."""
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            pairs = zip(specs, names, strict=True)
            sources = " and ".join(spec.source for spec, its in pairs if its == name)
            yield f"{at}: found {name!r} in {sources}, expected another for each"


def run_many(options: LaunchOptions, specs: Sequence[VmSpec], system: System | None = None) -> int:
    """Run them all to their ends, or with ``--detach`` until they run; the worst exit code.

    All are checked and planned before any is started, and nobody else plans until each has its
    place. A signal is passed on to each: asked once they power off, asked twice they quit.
    """
    registry = registry_of(System() if system is None else system)
    sources = sources_of(options, registry.system)
    inventory = _prepare_all(options, specs, take(sources, *specs), registry)
    tell(inventory)
    base = base_of(options.run_dir)
    if options.is_dry_run:
        plans = plan_together(specs, inventory)
        _show(options, plans)
        for warning in claim_warnings(registry, [claim(plan) for plan in plans]):
            print(f"warning: {warning}", flush=True)
        return 0
    supervisors = Supervisors(is_detached=options.is_detached, out=sys.stdout)
    with noted(supervisors.signal):
        with planning(base) as supervisors.lock:
            inventory = look_again(inventory, sources, *specs)
            plans = plan_together(specs, inventory)
            for plan, others in with_others(plans):
                supervisors.start(plan.name, _supervisor(options, plan, others, inventory, system))
            supervisors.follow_to_places()
        return supervisors.follow()


def _show(options: LaunchOptions, plans: Iterable[Plan]) -> None:
    """Show where each VM would live, or quietly what would be left out."""
    for plan in plans:
        if options.is_quiet:
            for warning in plan.warnings:
                print(f"warning: {plan.name}: {warning}", flush=True)
        else:
            from kvmhooks.show.plan_text import picture

            print(picture(plan), flush=True)


def _prepare_all(
    options: LaunchOptions, specs: Sequence[VmSpec], inventory: Inventory, registry: Registry
) -> Inventory:
    """Check each, and try KVM for it. Raises ``InputError`` with all that is missing."""

    def prepared(spec: VmSpec) -> VmSpec:
        nonlocal inventory
        inventory = prepare(options, spec, inventory, registry)
        if not options.is_quiet:
            print(f"[{spec.name}] {accelerator_line(spec, inventory)}", flush=True)
        return spec

    _, problems = _each(specs, prepared)
    if problems:
        raise InputError("\n".join(problems))
    return inventory


def _each(
    given: Iterable[Given], make: Callable[[Given], VmSpec]
) -> tuple[list[VmSpec], list[str]]:
    """Return what is made of each, and what is wrong with the others."""
    made: list[VmSpec] = []
    problems: list[str] = []
    for vm in given:
        try:
            made.append(make(vm))
        except SpecError as error:
            problems.append(str(error))
    return made, problems


def _supervisor(
    options: LaunchOptions,
    plan: Plan,
    others: tuple[Holding, ...],
    inventory: Inventory,
    system: System | None,
) -> Callable[[Callable[[], None], Callable[[], None] | None], int]:
    """Return what runs one of the VMs, in a process of its own."""

    def launch(taken: Callable[[], None], ready: Callable[[], None] | None) -> int:
        interrupt()
        return exit_code_of(
            lambda: run_planned(
                options, Reservation(plan, others, taken), inventory, system, ready
            ),
            interrupted="interrupted: nothing is running",
        )

    return launch
