"""Several VMs are planned beside each other before any of them is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from kvmhooks.errors import InputError
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding
from kvmhooks.placement.model import Plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.placement.together import plan_all
from kvmhooks.spec.model import VmSpec


@frozen
class Reservation:
    """The plan of one VM, made with those of others."""

    plan: Plan
    others: tuple[Holding, ...]
    """The resources that those will hold."""
    taken: Callable[[], None]
    """Called once the VM is known to have its place, or to have found another."""


def plan_together(specs: Sequence[VmSpec], inventory: Inventory) -> tuple[Plan, ...]:
    """Plan all beside the VMs that run, in the order in which they fit.

    Raises ``InputError`` that tells each that does not fit, and why: none is started then.
    """
    together = plan_all(specs, inventory)
    if together.refused:
        raise InputError("\n".join(f"{name}: {why}" for name, why in together.refused.items()))
    return together.plans


def with_others(plans: Sequence[Plan]) -> list[tuple[Plan, tuple[Holding, ...]]]:
    """Return each plan with what the others of them will hold."""
    held = [of_plan(plan) for plan in plans]
    return [(plan, (*held[:at], *held[at + 1 :])) for at, plan in enumerate(plans)]
