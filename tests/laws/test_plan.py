"""Laws of plans: for any VM on any small host, beside any other VMs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from hypothesis import assume, given
from hypothesis import strategies as st

from kvmhooks.errors import PlanError, Problem
from kvmhooks.host import Host
from kvmhooks.inventory.usage import from_json
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Plan, claim, plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec import VmSpec
from kvmhooks.spec.model import VmName
from kvmhooks.spec.structure import structure
from kvmhooks.values import CpuSet, union
from tests.laws.strategies import claims_on, hosts, placements, vm_documents

Situation = tuple[VmSpec, Host, tuple[Claim, ...]]
Made = tuple[Plan, Host, tuple[Claim, ...]]


@st.composite
def situations(draw: st.DrawFn, documents: st.SearchStrategy[dict[str, Any]]) -> Situation:
    """A VM, a host, and what others hold of it."""
    host = draw(hosts)
    return structure(draw(documents), Path("/vms")), host, draw(claims_on(host))


@st.composite
def plans(draw: st.DrawFn, documents: st.SearchStrategy[dict[str, Any]]) -> Made:
    """A plan with what it was made of."""
    spec, host, claims = draw(situations(documents))
    try:
        return plan(spec, host, claims), host, claims
    except PlanError:
        assume(condition=False)  # only what fits is looked at
        raise


DEDICATED = placements(placement="dedicated")
EXCLUSIVE = placements(placement="dedicated", exclusive=True)
PLACED = DEDICATED | placements(placement="shared", exclusive=False)
ANY = vm_documents(accel=("auto", "tcg"))


@given(situations(PLACED))
def test_a_plan_is_the_same_every_time(situation: Situation) -> None:
    """The same arguments give an equal plan, or the same refusal, and claims have no order."""
    spec, host, claims = situation
    assert _said(spec, host, claims) == _said(spec, host, claims[::-1])


@given(plans(PLACED))
def test_vcpus_run_where_they_may(made: Made) -> None:
    """Everything runs on online CPUs that nobody else holds, and on one CPU at least."""
    decided, host, claims = made
    taken = union(other.exclusive for other in claims)
    vcpus = (pin.cpus for pin in decided.vcpus)
    iothreads = (pin.cpus for pin in decided.iothreads)
    for cpus in (decided.emulator, *vcpus, *iothreads):
        assert cpus
        assert cpus <= host.online - taken


@given(plans(DEDICATED))
def test_dedicated_vcpus_have_a_cpu_each(made: Made) -> None:
    """No CPU is given twice, and none is the host's own or another thread's of this VM."""
    decided, _, _ = made
    given_out = [cpu for pin in decided.vcpus for cpu in pin.cpus]
    assert len(given_out) == len(set(given_out)) == len(decided.vcpus)
    own = CpuSet(given_out)
    assert own.isdisjoint(decided.housekeeping)
    assert own.isdisjoint(decided.emulator)
    assert all(pin.cpus.isdisjoint(own) for pin in decided.iothreads)
    assert decided.exclusive == (own if decided.spec.isolation.exclusive else CpuSet())
    assert decided.idle.isdisjoint(own | decided.emulator)


@given(plans(DEDICATED))
def test_guest_threads_are_host_siblings(made: Made) -> None:
    """The vCPUs of a guest core are on one core of the host, alone unless the score says so."""
    decided, host, _ = made
    threads = decided.topology.threads
    placed = [pin.cpus.first() for pin in decided.vcpus]
    cores = [
        {host.core_of(cpu) for cpu in placed[at : at + threads]}
        for at in range(0, len(placed), threads)
    ]
    assert all(len(core) == 1 for core in cores)
    if decided.spec.cpu.smt != "share" or not decided.score["company"]:
        assert len(set.union(*cores)) == len(cores)


@given(plans(PLACED | ANY))
def test_every_vcpu_is_in_one_cell_on_its_node(made: Made) -> None:
    """Cells split the vCPUs and the memory, and vCPUs run on the node of their cell."""
    decided, host, _ = made
    assert [cell.id for cell in decided.cells] == list(range(len(decided.cells)))
    assert [vcpu for cell in decided.cells for vcpu in cell.vcpus] == [
        pin.vcpu for pin in decided.vcpus
    ]
    assert [pin.vcpu for pin in decided.vcpus] == list(range(decided.spec.cpu.vcpus))
    assert sum(cell.memory_kib for cell in decided.cells) * 1024 == decided.spec.memory.size
    if decided.spec.memory.cells is not None:
        assert len({(cell.memory_kib, len(cell.vcpus)) for cell in decided.cells}) == 1
    for cell in decided.cells:
        assert cell.memory_kib % cell.page_kib == 0
        for vcpu in cell.vcpus:
            cpus = decided.vcpus[vcpu].cpus
            assert cell.node is None or cpus <= (host.node(cell.node).cpus or CpuSet())


@given(plans(PLACED | ANY))
def test_the_topology_is_what_was_said(made: Made) -> None:
    """Its product is the number of vCPUs, and each level that the person gave is as given."""
    decided, _, _ = made
    shape, cpu = decided.topology, decided.spec.cpu
    product = shape.sockets * shape.dies * shape.clusters * shape.cores * shape.threads
    assert product == cpu.vcpus
    for level in ("sockets", "dies", "cores", "threads"):
        assert getattr(cpu, level) in {None, getattr(shape, level)}


@given(plans(PLACED))
def test_memory_is_on_nodes_that_have_it(made: Made) -> None:
    """Bound cells take no more of a node than its memory, or its free huge pages."""
    decided, host, _ = made
    for node in host.nodes or ():
        asked = sum(cell.memory_kib for cell in decided.cells if cell.node == node.id)
        page_kib = decided.cells[0].page_kib
        free = {pool.size_kib: pool.free or 0 for pool in node.hugepages or ()}
        have = free[page_kib] * page_kib if page_kib > 4 else node.memory_kib
        assert have is not None
        assert asked <= have


@given(plans(PLACED | ANY))
def test_planning_and_releasing_leaves_all_as_it_was(made: Made) -> None:
    """A plan's holding is read back from its JSON, and without it the plan is the same again."""
    decided, host, claims = made
    held = of_plan(decided)
    assert from_json(held.to_json()) == held
    assert plan(decided.spec, host, (*claims, held)) == decided


@given(situations(DEDICATED), st.data())
def test_more_free_cpus_are_never_worse(situation: Situation, data: st.DataObject) -> None:
    """With the same housekeeping, a claim less makes no score worse and refuses nothing."""
    spec, host, claims = situation
    assume(claims)
    kept = CpuSet((min(host.online),))
    fewer = data.draw(st.sampled_from([claims[at + 1 :] for at in range(len(claims))]))
    before = _said(spec, host, claims, kept)
    if isinstance(before, Plan):
        after = plan(spec, host, fewer, housekeeping=kept)
        assert tuple(after.score.values()) <= tuple(before.score.values())


@given(plans(PLACED | ANY))
def test_the_xml_makes_the_same_claim(made: Made) -> None:
    """The claim of a plan is the one that the hook reads from the XML of the plan."""
    decided, _, _ = made
    assert read_claim(domain_xml(decided)) == claim(decided, driver="qemu")


@given(plans(PLACED | ANY))
def test_a_claim_survives_its_json(made: Made) -> None:
    """A claim is read back from its JSON, and says nothing of shared CPUs."""
    decided, _, _ = made
    asked = claim(decided)
    assert Claim.from_json(asked.to_json()) == asked
    assert asked.exclusive == decided.exclusive


@given(plans(EXCLUSIVE))
def test_what_is_exclusive_is_refused_to_the_next(made: Made) -> None:
    """Beside a claim on it, a second VM of the same shape gets none of the first one's CPUs."""
    decided, host, claims = made
    second = evolve(decided.spec, name=VmName("second"), uuid=None)
    try:
        beside = plan(second, host, (*claims, claim(decided)))
    except PlanError:
        return
    assert beside.cpus.isdisjoint(decided.exclusive)
    assert plan(decided.spec, host, (*claims, claim(decided))) == decided


@given(plans(PLACED | ANY))
def test_arguments_are_plain_words(made: Made) -> None:
    """Every argument for QEMU is one non-empty text without a NUL, each object named once."""
    decided, _, _ = made
    argv = qemu_argv(decided)
    assert all("\0" not in word for word in argv)
    distances = sum(map(len, decided.distances))
    assert argv.count("-numa") == len(decided.cells) + distances
    assert sum(word.startswith('{"qom-type":"iothread"') for word in argv) == len(decided.iothreads)


@frozen
class Refusal:
    """A PlanError as a value."""

    problem: Problem


def _said(
    spec: VmSpec, host: Host, claims: tuple[Claim, ...], housekeeping: CpuSet | None = None
) -> Plan | Refusal:
    try:
        return plan(spec, host, claims, housekeeping=housekeeping)
    except PlanError as error:
        return Refusal(error.problem)
