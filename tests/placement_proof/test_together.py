"""Several VMs at once, and VMs that are planned again: what the orders and the moves must keep."""

from __future__ import annotations

from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvmhooks.host import Host
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.placement import Plan, plan_all, replan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.placement.search.objective import ORDER
from kvmhooks.spec import VmSpec
from kvmhooks.spec.model import MemoryCell
from kvmhooks.values import ByteSize, union
from tests.placement_proof import brute
from tests.placement_proof.capacity import capacity_of
from tests.placement_proof.specs import documents, vm
from tests.placement_proof.test_exact import QUIET, Situation, planned, situations
from tests.placement_proof.test_laws import named
from tests.placement_proof.validator import score, violations


@given(situations())
@settings(max_examples=25, suppress_health_check=QUIET)
def test_what_is_best_stays(situation: Situation) -> None:
    """On an unchanged host nothing moves; when others have gone, only to what is best by then.

    The guest keeps its cells and threads, so the best is that of a VM that asks for just these.
    """
    decided = planned(situation)
    assume(isinstance(decided, Plan))
    assert isinstance(decided, Plan)
    # Its huge pages would be mapped by then, and this host was read before.
    assume(not decided.cells[0].is_huge)
    host, kept = situation.host, situation.housekeeping
    assert replan(decided, host, situation.others, housekeeping=kept) is None
    assume(
        not decided.cells[0].is_huge
    )  # its own pages are mapped, which the reference cannot know
    now = replan(decided, host, (), housekeeping=kept) or decided
    as_it_is = as_placed(decided)
    capacity = capacity_of(as_it_is, host, (), kept)
    least = brute.best(capacity)
    found = score(capacity, now)
    assert least == tuple(found[name] for name in ORDER)


def as_placed(decided: Plan) -> VmSpec:
    """A VM that asks for the cells, the pages and the threads that a plan gave it."""
    spec, cells = decided.spec, decided.cells
    nodes = [cell.node for cell in spec.memory.cell] or [None] * len(cells)
    memory = evolve(
        spec.memory,
        cells=None,
        cell=tuple(
            MemoryCell(vcpus=cell.vcpus, size=ByteSize.kib(cell.memory_kib), node=node)
            for cell, node in zip(cells, nodes, strict=True)
        ),
        hugepages=ByteSize.kib(cells[0].page_kib) if cells[0].is_huge else False,
    )
    return evolve(spec, memory=memory, cpu=evolve(spec.cpu, threads=decided.topology.threads))


@given(situations(), st.data())
@settings(max_examples=25, suppress_health_check=QUIET)
def test_together_fit_as_many_as_in_the_best_order(
    situation: Situation, data: st.DataObject
) -> None:
    """Several VMs are planned in the order that fits the most of them, and each is allowed."""
    host, others, kept = situation.host, situation.others, situation.housekeeping
    specs = [named(vm(data.draw(documents(host, most=6))), f"vm{number}") for number in range(3)]
    together = plan_all(specs, host, others, housekeeping=kept)
    assert len(together.plans) + len(together.refused) == len(specs)
    held: tuple[Claim | Holding, ...] = others
    for decided in together.plans:
        beside = held
        if of_plan(decided).floating:  # it gave way to those after it, too
            others_of = (other for other in together.plans if other is not decided)
            beside = (*others, *map(of_plan, others_of))
        capacity = capacity_of(decided.spec, host, beside, kept)
        found = violations(capacity, decided)
        if beside is not held:  # its score was that beside those of then
            found = [each for each in found if not each.startswith("score ")]
        assert found == []
        held = (*held, of_plan(decided))
    if together.is_proven:
        orders = [_placed(situation, order) for order in _orders(tuple(specs))]
        fitting = [placed for placed in orders if not _meet(host, placed)]
        assert len(together.plans) >= max(map(len, fitting), default=0)
        if all(decided.dedicated for placed in orders for decided in placed):
            assert len(together.plans) == max(map(len, orders))


def _meet(host: Host, placed: list[Plan]) -> bool:
    """Return whether shared vCPUs of one run on another's own CPUs, or with others of a ratio."""
    for each in placed:
        for other in placed:
            floats = union(cpus for cpus, _ in of_plan(each).floating)
            theirs = of_plan(other)
            taken = theirs.alone(host)
            if each.spec.cpu.ratio is not None:
                taken |= union(cpus for cpus, _ in theirs.floating)
            if each is not other and not floats.isdisjoint(taken):
                return True
    return False


def _orders(specs: tuple[VmSpec, ...]) -> list[tuple[VmSpec, ...]]:
    if not specs:
        return [()]
    return [
        (spec, *rest)
        for at, spec in enumerate(specs)
        for rest in _orders((*specs[:at], *specs[at + 1 :]))
    ]


def _placed(situation: Situation, order: tuple[VmSpec, ...]) -> list[Plan]:
    """Return those that find a place when they come in this order."""
    others, placed = situation.others, []
    for spec in order:
        decided = planned(evolve(situation, spec=spec, others=others))
        if isinstance(decided, Plan):
            others = (*others, of_plan(decided))
            placed.append(decided)
    return placed
