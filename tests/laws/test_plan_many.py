"""Laws of several VMs on one host, and of a VM that is planned anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations

from attrs import evolve
from hypothesis import event, given, settings
from hypothesis import strategies as st

from kvmhooks.errors import PlanError
from kvmhooks.host import Host
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.placement import Cell, Plan, plan, plan_all, replan, score_of
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.spec import VmSpec
from kvmhooks.spec.model import VmName
from kvmhooks.values import CpuSet, union
from tests.laws.strategies import hosts
from tests.laws.test_plan import DEDICATED, PLACED, Made, plans, situations


@given(plans(PLACED))
def test_the_score_is_what_the_pins_say(made: Made) -> None:
    """The score of a plan is counted from its pins and cells again, and is the same."""
    decided, host, claims = made
    assert score_of(decided, host, claims) == dict(decided.score)


@given(plans(PLACED))
def test_who_is_where_it_is_best_does_not_move(made: Made) -> None:
    """A VM that is planned anew on the host that it was planned for stays where it is."""
    decided, host, claims = made
    assert replan(decided, _with_mapped(host, decided.cells), claims) is None


@given(plans(DEDICATED), st.integers(0, 2))
def test_moving_makes_it_better(made: Made, left: int) -> None:
    """When others have gone, a VM moves to what is better, and from there no more."""
    decided, host, claims = made
    kept, fewer = decided.housekeeping, claims[:left]
    host = _with_mapped(host, decided.cells)
    moved = replan(decided, host, fewer, housekeeping=kept)
    if moved is None:
        return
    before = score_of(decided, host, fewer, housekeeping=kept)
    after = score_of(moved, host, fewer, housekeeping=kept)
    assert tuple(after.values()) < tuple(before.values())
    assert [cell.vcpus for cell in moved.cells] == [cell.vcpus for cell in decided.cells]
    assert moved.topology == decided.topology
    assert replan(moved, host, fewer, housekeeping=kept) is None


@given(plans(DEDICATED))
def test_who_may_not_stay_moves(made: Made) -> None:
    """A VM whose CPU another one took goes elsewhere, or the refusal says why not."""
    decided, host, claims = made
    thief = Holding(name="thief", uuid="f", exclusive=decided.vcpus[0].cpus)
    try:
        moved = replan(decided, _with_mapped(host, decided.cells), (*claims, thief))
    except PlanError:
        return
    assert moved is not None
    assert union(pin.cpus for pin in moved.vcpus).isdisjoint(thief.exclusive)


@given(st.data(), hosts)
def test_the_order_is_the_one_that_fits_the_most(data: st.DataObject, host: Host) -> None:
    """Of three VMs as many are placed together as in any order, each beside those before it."""
    specs = [named(data.draw(situations(DEDICATED))[0], at) for at in range(3)]
    together = plan_all(specs, host)
    assert together.is_proven
    held: list[Claim | Holding] = []
    for made in together.plans:
        assert plan(made.spec, host, held) == made
        held.append(of_plan(made))
    assert {made.name for made in together.plans} | set(together.refused) == {"vm0", "vm1", "vm2"}
    most = max(len(_placed(order, host)) for order in permutations(specs))
    assert len(together.plans) == most


@settings(max_examples=60)
@given(st.data(), hosts)
def test_shared_vcpus_give_way(data: st.DataObject, host: Host) -> None:
    """They float over what no VM has to itself, also a later one, and a ratio is kept.

    As many are placed as in any order in which that comes out by itself, if that is proven.
    """
    specs = [named(data.draw(situations(PLACED))[0], at) for at in range(3)]
    ratios = st.sampled_from([None, None, 1, 2])
    specs = [
        evolve(spec, cpu=evolve(spec.cpu, ratio=data.draw(ratios)))
        if spec.cpu.placement == "shared"
        else spec
        for spec in specs
    ]
    together = plan_all(specs, host)
    event(f"{sum(not made.dedicated for made in together.plans)} of {len(together.plans)} float")
    assert {made.name for made in together.plans} | set(together.refused) == {"vm0", "vm1", "vm2"}
    assert in_the_way(together.plans, host) == []
    if together.is_proven:
        orders = [_placed(order, host) for order in permutations(specs)]
        least = max((len(each) for each in orders if not in_the_way(each, host)), default=0)
        assert len(together.plans) >= least


def named(spec: VmSpec, at: int) -> VmSpec:
    """The same, as another VM."""
    return evolve(spec, name=VmName(f"vm{at}"), uuid=None)


def in_the_way(made: Sequence[Plan], host: Host) -> list[str]:
    """The shared vCPUs that run on others' own CPUs, or are more to a CPU than they may be."""
    found = []
    for each in made:
        others = [of_plan(other) for other in made if other is not each]
        floats = Counter(pin.cpus for pin in each.vcpus if pin.vcpu not in each.dedicated)
        alone = union(held.alone(host) for held in others)
        for cpus, count in floats.items():
            if not cpus or not cpus.isdisjoint(alone):
                found.append(f"{each.name}: {cpus} of {alone}")
            beside = sum(
                Fraction(many * len(pool & on), len(pool))
                for held in others
                for pool, many in held.floating
                for on in (_node_of(host, cpus),)
            )
            if each.spec.cpu.ratio is not None and count + beside > each.spec.cpu.ratio * len(cpus):
                found.append(f"{each.name}: {count} beside {beside} on {cpus}")
    return found


def _node_of(host: Host, cpus: CpuSet) -> CpuSet:
    nodes = [node.cpus or CpuSet() for node in host.nodes or ()]
    return next((there for there in nodes if cpus <= there), host.online)


def _placed(order: tuple[VmSpec, ...], host: Host) -> list[Plan]:
    made: list[Plan] = []
    for spec in order:
        try:
            made.append(plan(spec, host, [*map(of_plan, made)]))
        except PlanError:
            continue
    return made


def _with_mapped(host: Host, cells: tuple[Cell, ...]) -> Host:
    """The host once the huge pages of a VM are no longer free."""
    used: dict[tuple[int | None, int], int] = {}
    for cell in cells:
        key = (cell.node, cell.page_kib)
        used[key] = used.get(key, 0) + cell.pages
    if host.nodes is None:
        return host
    return evolve(
        host,
        nodes=tuple(
            evolve(
                node,
                hugepages=tuple(
                    evolve(pool, free=(pool.free or 0) - used.get((node.id, pool.size_kib), 0))
                    for pool in node.hugepages or ()
                ),
            )
            for node in host.nodes
        ),
    )
