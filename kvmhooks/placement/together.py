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
from kvmhooks.values import CpuSet, union

TRIES: Final = 400
"""The number of plans to make before the best order so far is taken."""

ROUNDS: Final = 4
"""So often, for each VM, others are asked whether they have to give way."""


@frozen(kw_only=True)
class Together:
    """The VMs, of several, that fit."""

    plans: tuple[Plan, ...]
    """In the order in which they were planned: each is beside those before it, and its shared vCPUs
    float over what those after it leave."""
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
    all, or ``tries`` plans were made. Shared vCPUs give way to a later VM, which is refused where
    they would not have their ``cpu.ratio`` beside it. ``target`` tells what will run each VM, if
    not what the inventory says. Raises ``PlanError`` when two have one UUID.
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
        specs=dict(zip(identities, specs, strict=True)),
        targets={spec.name: target(spec) for spec in specs},
    )
    largest_first = sorted(specs, key=lambda spec: (-spec.cpu.vcpus, -spec.memory.size))
    for order in (list(specs), largest_first):
        trial.follow(order)
    trial.search(largest_first, ())
    refused = trial.refused(specs)
    is_searched = trial.left > 0 and not trial.is_moved
    return Together(
        plans=trial.best,
        refused=refused,
        is_proven=is_searched or len(trial.best) == trial.possible,
    )


@define(kw_only=True)
class _Trial:
    inventory: Inventory
    """It holds nothing of these VMs' own."""
    housekeeping: CpuSet | None
    """Those that are given; else each VM has what those before it have, and more if need be."""
    effort: Effort
    specs: Mapping[str, VmSpec]
    """By the VMs' UUIDs."""
    targets: Mapping[str, Target | None]
    left: int
    best: tuple[Plan, ...] = ()
    possible: int = -1
    """The number of those that fit when they are alone, if that is known."""
    is_moved: bool = False
    """A VM gave way by going to another node: what did not fit before could fit then."""
    impossible: set[str] = field(factory=set)

    def plan(self, spec: VmSpec, others: Sequence[Plan]) -> Plan:
        """Return the plan of one VM beside others. Raises ``PlanError``."""
        self.left -= 1
        return plan(
            spec,
            self.inventory,
            [*map(of_plan, others)],
            housekeeping=self.housekeeping,
            effort=self.effort,
            target=self.targets[spec.name],
        )

    def beside(self, spec: VmSpec, placed: tuple[Plan, ...]) -> tuple[Plan, ...] | PlanError:
        """Return the plans with one VM more, to which the others gave way."""
        try:
            return self._giving_way((*placed, self.plan(spec, placed)))
        except PlanError as error:
            if not placed:
                self.impossible.add(spec.name)
            return error

    def _giving_way(self, placed: tuple[Plan, ...]) -> tuple[Plan, ...]:
        """Return the plans after those before the last one gave way to it. Raises ``PlanError``.

        A VM that gives way may have another one give way in turn.
        """
        last = placed[-1]
        causes = [last.uuid]
        for _ in range(ROUNDS * len(placed)):
            if not causes:
                return placed
            cause = next(each for each in placed if each.uuid == causes[0])
            causes.pop(0)
            for at, old in enumerate(placed):
                if not self._has_to_give_way(old, cause):
                    continue
                others = (*placed[:at], *placed[at + 1 :])
                try:
                    new = self.plan(self.specs[old.uuid], others)
                except PlanError as error:
                    raise _too_little(last, old, error) from error
                if new.vcpus != old.vcpus:
                    self.is_moved |= new.dedicated_cpus != old.dedicated_cpus or (
                        [cell.node for cell in new.cells] != [cell.node for cell in old.cells]
                    )
                    placed = (*placed[:at], new, *placed[at + 1 :])
                    causes.append(new.uuid)
        raise _too_little(last, cause, PlanError("cpu.vcpus", "no end", "places for all at once"))

    def _has_to_give_way(self, old: Plan, cause: Plan) -> bool:
        """Return whether one VM's own CPUs are in the pool of another, or its vCPUs, if they count.

        They count for a VM with a ratio.
        """
        if old.uuid == cause.uuid:
            return False
        pool = union(cpus for cpus, _ in of_plan(old).floating)
        theirs = of_plan(cause)
        taken = theirs.alone(self.inventory.host)
        if old.spec.cpu.ratio is not None:
            taken |= union(cpus for cpus, _ in theirs.floating)
        return not pool.isdisjoint(taken)

    def follow(self, order: Sequence[VmSpec]) -> None:
        """Place all that fit, one after the other."""
        if self.best and len(self.best) == len(order):
            return
        placed: tuple[Plan, ...] = ()
        for spec in order:
            made = self.beside(spec, placed)
            if not isinstance(made, PlanError):
                placed = made
        self.best = max(self.best, placed, key=len)
        self.possible = len(order)

    def search(self, rest: Sequence[VmSpec], placed: tuple[Plan, ...]) -> None:
        """Try every order of ``rest`` that could fit more than the best so far.

        A VM that does not fit now does not fit later: nothing becomes free.
        """
        if len(placed) + len(rest) <= len(self.best):
            return
        fitting: list[tuple[VmSpec, tuple[Plan, ...]]] = []
        for spec in rest:
            if self.left <= 0:
                return
            made = self.beside(spec, placed)
            if not isinstance(made, PlanError):
                fitting.append((spec, made))
        if not placed:
            self.possible = len(fitting)
        if fitting and len(placed) >= len(self.best):
            self.best = fitting[0][1]
        for spec, made in fitting:
            others = [other for other, _ in fitting if other is not spec]
            self.search(others, made)

    def refused(self, specs: Sequence[VmSpec]) -> dict[str, PlanError]:
        """Return the refusals of those that are left out; one that fits after all is not."""
        refusals: dict[str, PlanError] = {}
        for spec in specs:
            if spec.name not in {made.name for made in self.best}:
                made = self.beside(spec, self.best)
                if isinstance(made, PlanError):
                    refusals[spec.name] = made
                else:
                    self.best = made
        return refusals


def _too_little(last: Plan, other: Plan, error: PlanError) -> PlanError:
    """Say that a VM leaves too little for another, which was planned before it."""
    return PlanError(
        "cpu.vcpus",
        f"{last.spec.cpu.vcpus} {last.spec.cpu.placement}, which leave too little for {other.name}",
        f"room for both; {other.name}: {error}",
    )
