"""Laws of the planner that need no reference: it may not matter what has nothing to do with it."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvmhooks.errors import PlanError
from kvmhooks.inventory.usage import Holding, of_claim
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE
from kvmhooks.placement import Plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.spec import VmSpec
from kvmhooks.spec.model import Number, VmName
from kvmhooks.values import CpuSet
from tests.placement_proof.capacity import capacity_of
from tests.placement_proof.hosts import renumbered
from tests.placement_proof.specs import documents, vm
from tests.placement_proof.test_exact import QUIET, Situation, planned, situations
from tests.placement_proof.validator import violations


def score_of(decided: Plan | PlanError) -> tuple[int, ...] | None:
    """The score, or None for a refusal."""
    return None if isinstance(decided, PlanError) else tuple(decided.score.values())


@given(situations(), st.randoms(use_true_random=False))
@settings(max_examples=50, suppress_health_check=QUIET)
def test_names_do_not_matter(situation: Situation, chance: Random) -> None:
    """The same machine with other numbers for its CPUs and nodes gives an equal score."""
    host, spec = situation.host, situation.spec
    others = [_holding(other) for other in situation.others]
    # Pages that were promised on any node are taken from the lowest: there the numbers do matter.
    assume(all(node != ANY_NODE for other in others for node, _, _ in other.hugepages))
    cpus = _shuffled(host.present, chance)
    nodes = _shuffled([node.id for node in host.nodes or ()], chance)
    other = Situation(
        _renamed(spec, nodes),
        renumbered(host, cpus, nodes),
        tuple(_moved(other, cpus, nodes) for other in others),
        None
        if situation.housekeeping is None
        else CpuSet(cpus[cpu] for cpu in situation.housekeeping),
    )
    assert score_of(planned(situation)) == score_of(planned(other))


@given(situations())
@settings(max_examples=50, suppress_health_check=QUIET)
def test_more_free_cpus_are_never_worse(situation: Situation) -> None:
    """When others give back their CPUs, the same housekeeping kept, the score gets no worse."""
    before = score_of(planned(situation))
    assume(before is not None)
    none = CpuSet()
    freed = tuple(
        evolve(_holding(other), exclusive=none, dedicated=none, idle=none)
        for other in situation.others
    )
    after = score_of(planned(evolve(situation, others=freed)))
    assert before is not None
    assert after is not None
    assert after <= before


@given(situations())
@settings(max_examples=50, suppress_health_check=QUIET)
def test_what_is_given_back_is_as_it_was(situation: Situation) -> None:
    """A VM's own holding is no obstacle to it, and gone again it leaves everything as before."""
    decided = planned(situation)
    assume(isinstance(decided, Plan))
    assert isinstance(decided, Plan)
    own = of_plan(decided)
    assert planned(evolve(situation, others=(*situation.others, own))) == decided
    second = named(situation.spec, "second")
    alone = planned(evolve(situation, spec=second))
    planned(evolve(situation, spec=second, others=(*situation.others, own)))
    again = planned(evolve(situation, spec=second))
    assert score_of(again) == score_of(alone)


@given(situations(), st.data())
@settings(max_examples=50, suppress_health_check=QUIET)
def test_capacity_is_never_exceeded(situation: Situation, data: st.DataObject) -> None:
    """VMs that come one after the other share nothing that one of them has for itself."""
    others: tuple[Claim | Holding, ...] = situation.others
    for number in range(4):
        spec = named(vm(data.draw(documents(situation.host, most=4))), f"vm{number}")
        here = evolve(situation, spec=spec, others=others)
        decided = planned(here)
        if isinstance(decided, Plan):
            capacity = capacity_of(spec, here.host, others, here.housekeeping)
            assert violations(capacity, decided) == []
            others = (*others, of_plan(decided))


def _holding(claim: Claim | Holding) -> Holding:
    return claim if isinstance(claim, Holding) else of_claim(claim)


def named(spec: VmSpec, name: str) -> VmSpec:
    return evolve(spec, name=VmName(name), uuid=None)


def _shuffled(numbers: Iterable[int], chance: Random) -> dict[int, int]:
    old = sorted(numbers)
    new = list(old)
    chance.shuffle(new)
    return dict(zip(old, new, strict=True))


def _renamed(spec: VmSpec, nodes: dict[int, int]) -> VmSpec:
    memory = spec.memory
    allowed = None if memory.nodes is None else CpuSet(nodes[node] for node in memory.nodes)
    cells = tuple(
        evolve(cell, node=None if cell.node is None else Number(nodes[cell.node]))
        for cell in memory.cell
    )
    return evolve(spec, memory=evolve(memory, nodes=allowed, cell=cells))


def _moved(holding: Holding, cpus: dict[int, int], nodes: dict[int, int]) -> Holding:
    def moved(these: CpuSet) -> CpuSet:
        return CpuSet(cpus[cpu] for cpu in these)

    return evolve(
        holding,
        exclusive=moved(holding.exclusive),
        dedicated=moved(holding.dedicated),
        idle=moved(holding.idle),
        helpers=moved(holding.helpers),
        floating=tuple((moved(these), count) for these, count in holding.floating),
        memory=tuple((nodes.get(node, node), kib) for node, kib in holding.memory),
        hugepages=tuple((nodes.get(node, node), size, n) for node, size, n in holding.hugepages),
    )
