"""A plan whose claim is held: made around the VMs that live, and anew when another was faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvm_launch.host.lease import Lease
from kvmhooks.errors import IsolationError
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.placement.model import Plan
from kvmhooks.placement.plan import identity_of, plan
from kvmhooks.spec.model import VmSpec

ATTEMPTS: Final = 8
"""The number of new plans when another VM has taken the CPUs between the plan and the claim."""


def plan_and_claim(
    lease: Lease, spec: VmSpec, look: Callable[[], Inventory], made: Plan | None = None
) -> Plan:
    """Plan around the VMs that live, and have the lease take what the plan claims.

    ``look`` takes the inventory as it is by then. The QEMU from which our guest comes is another
    VM. A plan that was ``made`` already is taken as it is, unless another VM has what it claims.
    Raises ``PlanError``, or ``IsolationError`` for what is refused; nothing was changed then.
    """
    for attempt in range(ATTEMPTS):
        inventory = look()
        place = inventory.receiving(identity_of(spec)) if lease.is_incoming else inventory
        decided = made or plan(spec, place)
        try:
            lease.acquire(decided)
        except IsolationError:
            nobody_came = made is None and look().holdings == inventory.holdings
            if nobody_came or attempt == ATTEMPTS - 1:
                raise
            made = None
        else:
            return decided
    raise AssertionError
