"""Several VMs on one host: in the order in which the most of them fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import define, evolve, field, frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.inventory.inventory import Inventory, inventory_on
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.machine.target import Target
from kvmhooks.placement.model import Plan
from kvmhooks.placement.plan import identity_of, plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.placement.search.search import Effort
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet

TRIES: Final = 400
"""The number of plans to make before the best order so far is taken."""


@frozen(kw_only=True)
class Together:
    """The VMs, of several, that fit."""

    plans: tuple[Plan, ...]
    """In the order in which they were planned: each is beside those before it."""
    refused: Mapping[str, PlanError]
    """By name, what does not fit beside the others."""
    is_proven: bool
    """No order fits more of them."""


def plan_all(
    specs: Sequence[VmSpec],
    place: Host | Inventory,
    claims: Sequence[Claim | Holding] = (),
    *,
    housekeeping: CpuSet | None = None,
    effort: Effort | None = None,
    tries: int = TRIES,
    target: Callable[[VmSpec], Target | None] = lambda _: None,
) -> Together:
    """Plan several VMs beside each other and what holds something at ``place``, or made ``claims``.

    All orders are tried, the given one first and then the largest first, until all fit that fit at
    all, or ``tries`` plans were made. ``target`` tells what will run each VM, if not what the
    inventory says. Raises ``PlanError`` when two have one UUID.
    """
    identities = [identity_of(spec) for spec in specs]
    for at, identity in enumerate(identities):
        if identity in identities[:at]:
            raise PlanError(
                "uuid", f"{specs[at].name} has the UUID of another, {identity}", "one for each VM"
            )
    inventory = inventory_on(place, claims)
    inventory = evolve(
        inventory,
        host=inventory.host_beside(*identities),
        holdings=tuple(inventory.others_of(*identities)),
        expected=tuple(inventory.expected_beside(*identities)),
    )
    kept = inventory.kept_beside(inventory.holdings) if housekeeping is None else housekeeping
    trial = _Trial(
        inventory=inventory,
        housekeeping=kept,
        effort=effort or Effort(),
        left=tries,
        targets={spec.name: target(spec) for spec in specs},
    )
    largest_first = sorted(specs, key=lambda spec: (-spec.cpu.vcpus, -spec.memory.size))
    for order in (list(specs), largest_first):
        trial.follow(order)
    trial.search(largest_first, ())
    return Together(
        plans=trial.best,
        refused=trial.refused(specs),
        is_proven=trial.left > 0 or len(trial.best) == trial.possible,
    )


@define(kw_only=True)
class _Trial:
    inventory: Inventory
    """It holds nothing of these VMs' own."""
    housekeeping: CpuSet | None
    """Those that are given; else each VM has what those before it have, and more if need be."""
    effort: Effort
    targets: Mapping[str, Target | None]
    left: int
    best: tuple[Plan, ...] = ()
    possible: int = -1
    """The number of those that fit when they are alone, if that is known."""
    impossible: set[str] = field(factory=set)

    def plan(self, spec: VmSpec, placed: Sequence[Plan]) -> Plan | PlanError:
        """Return the plan of one VM beside those that are placed."""
        self.left -= 1
        try:
            return plan(
                spec,
                self.inventory,
                [*map(of_plan, placed)],
                housekeeping=self.housekeeping,
                effort=self.effort,
                target=self.targets[spec.name],
            )
        except PlanError as error:
            if not placed:
                self.impossible.add(spec.name)
            return error

    def follow(self, order: Sequence[VmSpec]) -> None:
        """Place all that fit, one after the other."""
        if self.best and len(self.best) == len(order):
            return
        placed: list[Plan] = []
        for spec in order:
            made = self.plan(spec, placed)
            if isinstance(made, Plan):
                placed.append(made)
        self.best = max(self.best, tuple(placed), key=len)
        self.possible = len(order)

    def search(self, rest: Sequence[VmSpec], placed: tuple[Plan, ...]) -> None:
        """Try every order of ``rest`` that could fit more than the best so far.

        A VM that does not fit now does not fit later: nothing becomes free.
        """
        if len(placed) + len(rest) <= len(self.best):
            return
        fitting: list[tuple[VmSpec, Plan]] = []
        for spec in rest:
            if self.left <= 0:
                return
            made = self.plan(spec, placed)
            if isinstance(made, Plan):
                fitting.append((spec, made))
        if not placed:
            self.possible = len(fitting)
        if fitting and len(placed) >= len(self.best):
            self.best = (*placed, fitting[0][1])
        for spec, made in fitting:
            others = [other for other, _ in fitting if other is not spec]
            self.search(others, (*placed, made))

    def refused(self, specs: Sequence[VmSpec]) -> dict[str, PlanError]:
        """Return the refusals of those that are left out."""
        names = {made.name for made in self.best}
        refusals: dict[str, PlanError] = {}
        for spec in specs:
            if spec.name not in names:
                made = self.plan(spec, self.best)
                assert isinstance(made, PlanError)  # else it would have been placed
                refusals[spec.name] = made
        return refusals
