"""Twelve kinds of VMs on every captured host: an allowed plan, or a refusal with a reason.

The trees are those of ``tests/corpora``. The reference is the validator, and the search of
everything where the host is small enough; neither shares code with the planner.
"""

from __future__ import annotations

import pytest

from kvmhooks.errors import PlanError
from kvmhooks.placement.search.host_cpus import choose_housekeeping
from kvmhooks.values import CpuSet
from tests.corpora.test_hosts import TRUTHS, captured
from tests.placement_proof.brute import best
from tests.placement_proof.capacity import capacity_of
from tests.placement_proof.shapes import SHAPES, document
from tests.placement_proof.specs import vm
from tests.placement_proof.test_exact import Situation, planned
from tests.placement_proof.validator import violations

pytestmark = pytest.mark.skipif(not TRUTHS, reason="no captured hosts")

MOST_CPUS, MOST_NODES = 16, 2
"""The size up to which everything can be tried."""
NAMES = [path.name.removesuffix(".truth.json") for path in TRUTHS]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_captured_host_takes_a_vm_or_says_why_not(name: str, shape: str) -> None:
    """The plan is one that the validator allows; a refusal says what was found and expected."""
    host = captured(name)
    spec = vm(document(shape, host))
    situation = Situation(spec, host, (), choose_housekeeping(host, CpuSet()))
    capacity = capacity_of(spec, host, (), situation.housekeeping)
    is_small = len(host.online) <= MOST_CPUS and len(host.nodes or ()) <= MOST_NODES
    decided = planned(situation)
    if isinstance(decided, PlanError):
        assert shape != "small-shared"
        assert decided.problem.at
        assert any(letter.isdigit() for letter in str(decided)), f"no numbers: {decided}"
        assert not is_small or best(capacity) is None, f"refused ({decided}), and it is possible"
        return
    assert shape != "too-large"
    assert violations(capacity, decided) == []
    if is_small:
        assert tuple(decided.score.values()) == best(capacity)
