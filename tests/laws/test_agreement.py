"""Agreement of CPUs about whom they share a core with, and what a message says of their sets."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.errors import SHOWN
from kvmhooks.host.cpu.cpus import CpuFiles
from kvmhooks.host.cpu.topology import Evidence, assemble
from kvmhooks.host.files.flaws import Flaws
from kvmhooks.host.files.lists import CpuLists
from kvmhooks.host.model import Cpu, Host, Node
from kvmhooks.host.nesting import nest
from kvmhooks.values import MAX_CPU, CpuSet

SETS = st.sets(st.integers(0, 5)).map(CpuSet)


def made(
    told: dict[int, CpuSet | None], online: CpuSet, nodes: tuple[Node, ...] = ()
) -> tuple[dict[int, Cpu], tuple[str, ...]]:
    """The CPUs made of what each says of its siblings, and what is wrong with that."""
    flaws = Flaws()
    topologies = [
        CpuFiles(number, {}, siblings, (), None, None, None, None, None)
        for number, siblings in told.items()
    ]
    lists = CpuLists(online=online, **dict.fromkeys(set(CpuLists._fields) - {"online"}))
    evidence = Evidence(topologies, lists, online, (), nodes, {})
    return {cpu.id: cpu for cpu in assemble(evidence, flaws)}, flaws.told()


@given(st.dictionaries(st.integers(0, 5), st.none() | SETS), SETS)
def test_siblings_are_those_on_which_each_agrees_with_each(
    told: dict[int, CpuSet | None], online: CpuSet
) -> None:
    """An online CPU has the siblings it says when all of them that say something say the same."""
    cpus, _ = made(told, online)
    answers = {cpu: siblings for cpu, siblings in told.items() if siblings}
    for cpu in told:
        own = answers.get(cpu)
        agreed = (
            own is not None
            and cpu in online & own
            and all(answers.get(other, own) & online == own & online for other in own & online)
        )
        assert cpus[cpu].siblings == (own & online if own is not None and agreed else None)


@given(st.lists(SETS, max_size=4))
def test_a_cpu_is_in_the_node_that_alone_has_it(sets: list[CpuSet]) -> None:
    """A CPU that two nodes have is in none."""
    nodes = tuple(Node(id=number, cpus=cpus) for number, cpus in enumerate(sets))
    cpus, _ = made({}, CpuSet(range(6)), nodes)
    for cpu in range(6):
        having = [node.id for node in nodes if node.cpus is not None and cpu in node.cpus]
        assert cpus[cpu].node == (having[0] if len(having) == 1 else None)


@pytest.mark.parametrize(
    "siblings",
    [CpuSet(range(8192)), CpuSet(range(0, 8192, 2))],
    ids=["one group", "half of it, and no range"],
)
def test_8192_cpus_are_compared_at_once(siblings: CpuSet) -> None:
    """It takes no minutes that each of 8,192 CPUs names thousands, and no message has them all."""
    begun = time.process_time()
    cpus, flaws = made(dict.fromkeys(range(8192), siblings), CpuSet(range(8192)))
    assert time.process_time() - begun < 10
    assert [cpu for cpu in cpus if cpus[cpu].siblings] == list(siblings)
    assert all(len(line) < 300 for line in flaws)


def test_8192_cores_are_put_into_their_package_at_once() -> None:
    """It takes no minute that none of them has a cache or a sibling."""
    cpus = tuple(Cpu(id=number, online=True, package=0, core=number) for number in range(8192))
    begun = time.process_time()
    (package,) = nest(Host(cpus=cpus)).inside
    assert time.process_time() - begun < 10
    assert [place.cpus for place in package.inside] == [CpuSet((cpu.id,)) for cpu in cpus]


@given(st.lists(SETS.filter(bool), max_size=6))
def test_a_place_is_inside_the_smallest_that_holds_it(sets: list[CpuSet]) -> None:
    """One that is partly inside another is left out; of the same size, the earlier has it."""
    host = Host(
        cpus=tuple(Cpu(id=number, online=True) for number in range(6)),
        nodes=tuple(Node(id=number, cpus=cpus) for number, cpus in enumerate(sets)),
    )
    top = nest(host, ["node"])
    expected: list[tuple[CpuSet, list[CpuSet]]] = [(host.online, [])]
    for cpus in sorted(sets, key=lambda cpus: (-len(cpus), cpus.first())):
        holder = next(place for place in expected[::-1] if cpus <= place[0])
        if all(cpus.isdisjoint(each) for each in holder[1]):
            holder[1].append(cpus)
            expected.append((cpus, []))
    found = [top]
    for place in found:
        found += place.inside
    assert sorted((str(place.cpus), len(place.inside)) for place in found) == sorted(
        (str(cpus), len(inside)) for cpus, inside in expected
    )


@given(st.sets(st.integers(0, MAX_CPU) | st.integers(0, 300)).map(CpuSet))
def test_a_message_has_the_beginning_of_a_set(cpus: CpuSet) -> None:
    """It is the whole where that is short, and else its first whole ranges and an ellipsis."""
    whole, brief = str(cpus), cpus.brief()
    assert len(brief) <= SHOWN + len(",…")
    assert brief == whole or (len(whole) > SHOWN and whole.startswith(brief.removesuffix("…")))
    assert (brief == whole) == (len(whole) <= SHOWN)
