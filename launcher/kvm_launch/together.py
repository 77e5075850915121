"""Several VMs are planned beside each other before any of them is started."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from attrs import frozen

from kvm_launch.hold import live_claims
from kvm_launch.planning import target_of
from kvm_launch.record import pinned
from kvmhooks.errors import InputError
from kvmhooks.host import Host
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.live.rundir import base_of
from kvmhooks.placement import Plan, plan_all
from kvmhooks.placement.holding import Holding, of_plan
from kvmhooks.spec import VmSpec


@frozen
class Seat:
    """The plan of one VM, made with those of others."""

    plan: Plan
    others: tuple[Holding, ...]
    """What those will hold."""
    taken: Callable[[], None]
    """Called once the VM is known to have its place, or to have found another."""

    def beside(self, known: Sequence[Claim]) -> tuple[Claim | Holding, ...]:
        """What the VM's place is planned around: the VMs that run, and those still to come."""
        there = {one.uuid for one in known}
        return (*known, *(one for one in self.others if one.uuid not in there))


def plan_together(
    arguments: argparse.Namespace, specs: Sequence[VmSpec], host: Host, keeper: Keeper
) -> tuple[Plan, ...]:
    """Plan all beside the VMs that run, in the order in which they fit.

    Raises ``InputError`` that tells each that does not fit, and why: none is started then.
    """
    together = plan_all(
        specs,
        host,
        (*live_claims(keeper), *pinned(base_of(arguments.run_dir))),
        target=lambda spec: target_of(spec, arguments),
    )
    if together.refused:
        raise InputError("\n".join(f"{name}: {why}" for name, why in together.refused.items()))
    return together.plans


def seats(plans: Sequence[Plan]) -> list[tuple[Plan, tuple[Holding, ...]]]:
    """Each plan with what the others of them will hold."""
    held = [of_plan(plan) for plan in plans]
    return [(plan, (*held[:at], *held[at + 1 :])) for at, plan in enumerate(plans)]
