"""The planner against every placement there is on small hosts, and CP-SAT on medium ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import frozen
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.placement import Plan, plan
from kvmhooks.placement.search.host_cpus import choose_housekeeping
from kvmhooks.spec import VmSpec
from kvmhooks.values import CpuSet
from tests.placement_proof import brute, cpsat
from tests.placement_proof.brute import Score
from tests.placement_proof.capacity import Capacity, capacity_of
from tests.placement_proof.hosts import medium_hosts, small_hosts
from tests.placement_proof.specs import documents, holdings, vm
from tests.placement_proof.validator import violations


@frozen
class Situation:
    """A VM, a host, what others hold of it, and what is kept for the host itself."""

    spec: VmSpec
    host: Host
    others: tuple[Claim | Holding, ...]
    housekeeping: CpuSet | None
    """None: the placement chooses reserves for it."""


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Any situation on a small host."""
    host = draw(small_hosts)
    return draw(_situations(host, vm(draw(documents(host))), is_given=False))


@st.composite
def medium_situations(draw: st.DrawFn) -> Situation:
    """A dedicated VM on a host of up to 64 CPUs on 8 nodes."""
    host = draw(medium_hosts)
    spec = vm(draw(documents(host, placements=("dedicated",), most=24)))
    return draw(_situations(host, spec, is_given=True))


@st.composite
def _situations(draw: st.DrawFn, host: Host, spec: VmSpec, *, is_given: bool) -> Situation:
    """Draw what others hold; the host's own CPUs are given, or chosen with the VM's."""
    others = draw(holdings(host))
    held = capacity_of(spec, host, others, ()).held
    left = sorted(host.online - held)
    housekeeping: CpuSet | None = None
    if not is_given and draw(st.booleans()):
        pass
    elif not left or draw(st.booleans()):
        housekeeping = choose_housekeeping(host, CpuSet(held))
    else:
        least = draw(st.sampled_from([1, 1, 1, 0]))
        housekeeping = CpuSet(draw(st.sets(st.sampled_from(left), min_size=least, max_size=2)))
    return Situation(spec, host, others, housekeeping)


def check(situation: Situation, best: Callable[[Capacity], Score | None]) -> None:
    """The plan is allowed and the best there is, or there is none."""
    capacity = capacity_of(situation.spec, situation.host, situation.others, situation.housekeeping)
    least = best(capacity)
    decided = planned(situation)
    if isinstance(decided, PlanError):
        assert least is None, f"refused ({decided}), and {least} is possible"
        return
    assert violations(capacity, decided) == []
    assert least is not None, f"planned {tuple(decided.score.values())}, and nothing is allowed"
    assert tuple(decided.score.values()) == least
    assert (decided.optimal, dict(decided.gap)) == (True, {})


def planned(situation: Situation) -> Plan | PlanError:
    """The plan, or why there is none."""
    spec, host, others = situation.spec, situation.host, situation.others
    try:
        return plan(spec, host, others, housekeeping=situation.housekeeping)
    except PlanError as refusal:
        return refusal


QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


@given(situations())
@settings(max_examples=300, suppress_health_check=QUIET)
def test_no_placement_is_better(situation: Situation) -> None:
    """The plan's score is the least of all placements; a refusal means that there is none."""
    check(situation, brute.best)


@pytest.mark.slow
@given(situations())
@settings(max_examples=5000, suppress_health_check=QUIET)
def test_no_placement_is_better_in_thousands(situation: Situation) -> None:
    """The same, on many more."""
    check(situation, brute.best)


@given(medium_situations())
@settings(max_examples=25, suppress_health_check=QUIET)
def test_no_placement_is_better_on_medium_hosts(situation: Situation) -> None:
    """The same where not everything can be tried; CP-SAT proves what is best."""
    check(situation, cpsat.best)


@pytest.mark.slow
@given(medium_situations())
@settings(max_examples=500, suppress_health_check=QUIET)
def test_no_placement_is_better_on_medium_hosts_in_hundreds(situation: Situation) -> None:
    """The same, on many more."""
    check(situation, cpsat.best)


@given(situations())
@settings(max_examples=25, suppress_health_check=QUIET)
def test_both_references_agree(situation: Situation) -> None:
    """CP-SAT finds what trying everything finds."""
    assume(situation.spec.cpu.placement == "dedicated" and situation.housekeeping is not None)
    capacity = capacity_of(situation.spec, situation.host, situation.others, situation.housekeeping)
    assert cpsat.best(capacity) == brute.best(capacity)
