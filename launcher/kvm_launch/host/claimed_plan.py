"""A plan whose claim is held: made around the VMs that live, and anew when another was faster."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Final

from kvm_launch.host.lease import Lease, second_identity_of
from kvmhooks.errors import IsolationError
from kvmhooks.host import Host
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.machine.target import OLDEST, Target
from kvmhooks.placement.model import Plan
from kvmhooks.placement.plan import identity_of, plan
from kvmhooks.spec.model import VmSpec

ATTEMPTS: Final = 8
"""The number of new plans when another VM has taken the CPUs between the plan and the claim."""

_ELSEWHERE: Final = str(uuid.UUID(int=0))


def plan_and_claim(
    lease: Lease,
    spec: VmSpec,
    host: Host,
    others: Sequence[Claim | Holding] = (),
    target: Target = OLDEST,
    made: Plan | None = None,
) -> Plan:
    """Plan for a target around the VMs that live, and have the lease take what the plan claims.

    ``others`` are VMs that claim nothing. A plan that was ``made`` already is taken as it is,
    unless another VM has what it claims. Raises ``PlanError``, or ``IsolationError`` for what
    is refused; nothing was changed then.
    """
    for attempt in range(ATTEMPTS):
        claims = lease.live_claims()
        beside = (*foreign(lease, claims, spec), *others)
        decided = made or plan(spec, host, beside, target=target)
        try:
            lease.acquire(decided)
        except IsolationError:
            nobody_came = made is None and lease.live_claims() == claims
            if nobody_came or attempt == ATTEMPTS - 1:
                raise
            made = None
        else:
            return decided
    raise AssertionError


def foreign(lease: Lease, claims: Iterable[Claim], spec: VmSpec) -> list[Claim]:
    """Return the claims, with that of the QEMU from which our guest comes as another VM's."""
    ours = (
        {identity_of(spec), second_identity_of(identity_of(spec))} if lease.is_incoming else set()
    )
    return [claim.by(_ELSEWHERE) if claim.uuid in ours else claim for claim in claims]
