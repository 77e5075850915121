"""A VM that runs goes to other CPUs of its own, and its isolation with it."""

from __future__ import annotations

from kvmhooks.errors import IsolationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.report import Report
    from kvmhooks.isolate.registry.registry import Registry
    from kvmhooks.values import CpuSet

SECONDS: Final = 60.0
"""The time for which CPUs are kept for a VM that is moved to them."""


def relocate(registry: Registry, claim: Claim, cpus: CpuSet, pin: Callable[[], None]) -> Report:
    """Have ``pin`` put a VM's vCPUs on ``cpus``, which are its own from then on.

    They are reserved before, and on record. From a partition the kernel lets no thread go: so its
    partitions are given up before, and made anew where its vCPUs are then, also after ``pin`` has
    failed. Raises ``IsolationError`` when another VM or the host has the CPUs, or it got others in
    the end.
    """
    registry.reserve(claim.on(cpus), SECONDS)
    registry.loosen(claim.key)
    try:
        pin()
    finally:
        report = registry.tighten(claim.key)
    held = registry.look().held.get(claim.key)
    if held is None:
        raise IsolationError(f"{claim.name}: its claim was dropped meanwhile (`kvmhooks undo`)")
    found = held.claim.exclusive
    if found != cpus:
        raise IsolationError(f"{claim.name}: found CPUs {found} its own, expected {cpus}")
    return report
