"""The table of experts is whole: its hosts are as it says, its VMs right, its sources named.

What experts agree on, and what none would do, holds for the plans; ``compare`` prints the rest.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvmhooks.host import Host, read
from kvmhooks.host.model import Cache, Cpu, Node
from kvmhooks.placement import Together, plan_all
from kvmhooks.values import CpuSet
from tests.placement_experts.compare import TARGET, differences
from tests.placement_experts.machines import is_missing, write_machine
from tests.placement_experts.predicates import OF_ALL, OF_ONE, Placed, always, failures
from tests.placement_experts.table import FILES, HERE, KINDS, Entry, read_table

PAGE = HERE.parents[1] / "docs/expert-placement.md"
SOURCES: dict[str, Any] = tomllib.loads((HERE / "sources.toml").read_text())
SETS = frozenset({"pins_within", "float_within"})
CPUS = frozenset({"emulator_within", "iothreads_within", "host_within", "host_has"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_host_is_as_its_entries_take_it(path: Path, tmp_path: Path) -> None:
    """Nodes, L3 caches, kinds and isolation, as the host is read from its tree."""
    described, facts, _ = read_table(path)
    if is_missing(described):
        pytest.skip(f"no captured host {described['tree']}")
    host = read(write_machine(described, tmp_path))
    assert facts_of(host) == {
        "nodes": {number: str(CpuSet.parse(cpus)) for number, cpus in facts["nodes"].items()},
        "l3": sorted(str(CpuSet.parse(cpus)) for cpus in facts["l3"]),
        **{name: facts[name] for name in ("performance", "efficiency", "isolated", "nohz_full")},
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_plans_are_what_experts_agree_on(path: Path, tmp_path: Path) -> None:
    """Every «must» of every entry, and nothing that no expert would do."""
    described, _, entries = read_table(path)
    if is_missing(described):
        pytest.skip(f"no captured host {described['tree']}")
    host = read(write_machine(described, tmp_path))
    found = {
        entry.kind: differences(replace(entry, should={}), entry_plans(entry, host), host)
        for entry in entries
    }
    assert {kind: wrong for kind, wrong in found.items() if wrong} == {}


def entry_plans(entry: Entry, host: Host) -> Together:
    """Plan an entry's VMs."""
    return plan_all(entry.specs, host, target=lambda _: TARGET)


def facts_of(host: Host) -> dict[str, Any]:
    """Return of a host what its file tells under ``facts``."""
    cpus = host.cpus or ()
    return {
        "nodes": {str(node.id): str(node.cpus or "") for node in host.nodes or ()},
        "l3": sorted(str(cache.cpus) for cache in host.caches or () if cache.level == 3),
        "performance": str(CpuSet(cpu.id for cpu in cpus if cpu.kind == "performance")),
        "efficiency": str(CpuSet(cpu.id for cpu in cpus if cpu.kind == "efficiency")),
        "isolated": str(CpuSet(cpu.id for cpu in cpus if cpu.isolated)),
        "nohz_full": str(CpuSet(cpu.id for cpu in cpus if cpu.nohz_full)),
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_host_has_an_entry_for_each_kind(path: Path) -> None:
    """Eight kinds or more, each a right VM, with reasons, sources and predicates that are known."""
    _, facts, entries = read_table(path)
    cpus = CpuSet.parse(",".join(list(filter(None, facts["nodes"].values()))))
    assert [entry.kind for entry in entries][: len(KINDS)] == list(KINDS)
    for entry in entries:
        assert len(entry.specs) == entry.count, entry.kind
        assert entry.why.strip(), entry.kind
        assert entry.sources, entry.kind
        assert set(entry.sources) <= set(SOURCES), entry.kind
        assert entry.must, entry.kind
        for wanted in (entry.must, entry.should):
            for name, value in predicates_of(wanted):
                assert name in OF_ONE or name in OF_ALL, f"{entry.kind}: {name}"
                if name in SETS | CPUS:
                    for one_of in value if name in SETS else [value]:
                        assert CpuSet.parse(one_of) <= cpus, f"{entry.kind}: {name}: {one_of}"


def predicates_of(wanted: Any) -> list[tuple[str, Any]]:
    """Return all predicates of a table, those of ``either`` too."""
    found = [(name, value) for name, value in wanted.items() if name != "either"]
    return found + [each for other in wanted.get("either", ()) for each in predicates_of(other)]


def test_the_page_and_the_table_name_the_same_sources() -> None:
    """Each source is used by an entry, and stands with its address on the page."""
    used = {name for path in FILES for entry in read_table(path)[2] for name in entry.sources}
    assert used == set(SOURCES)
    page = PAGE.read_text()
    listed = dict(re.findall(r"^- `([a-z0-9-]+)`: <([^>]+)>", page, re.MULTILINE))
    assert listed == {name: source["address"] for name, source in SOURCES.items()}
    named = {name: f"`{name}`" in page for name in (*OF_ONE, *OF_ALL)}
    assert all(named.values()), named


def core(first: int, *, l3: int, node: int = 0, kind: Any = None) -> list[Cpu]:
    """A core of two threads."""
    siblings = CpuSet([first, first + 1])
    return [
        Cpu(id=cpu, online=True, siblings=siblings, l2=first, l3=l3, node=node, kind=kind)
        for cpu in siblings
    ]


HOST = Host(
    cpus=(*core(0, l3=0), *core(2, l3=0), *core(4, l3=4), *core(6, l3=4)),
    caches=(
        *(Cache(2, "Unified", at, 512, CpuSet([at, at + 1])) for at in (0, 2, 4, 6)),
        Cache(3, "Unified", 0, 4096, CpuSet(range(4))),
        Cache(3, "Unified", 4, 4096, CpuSet(range(4, 8))),
    ),
    nodes=(Node(id=0, cpus=CpuSet(range(8))),),
)
"""Four cores of two threads below two L3 caches."""


def planned(pins: str, **other: Any) -> Any:
    """A plan as far as predicates look at it: dedicated vCPUs on these CPUs."""
    cpus = CpuSet.parse(pins)
    return SimpleNamespace(
        **{
            "name": "vm",
            "vcpus": [SimpleNamespace(vcpu=at, cpus=CpuSet([cpu])) for at, cpu in enumerate(cpus)],
            "dedicated": CpuSet(range(len(cpus))),
            "emulator": CpuSet([0, 1]),
            "iothreads": [SimpleNamespace(id=1, cpus=CpuSet([1]))],
            "cells": [SimpleNamespace(node=0, vcpus=CpuSet(range(len(cpus))), page_kib=2048)],
            "memory_mode": "strict",
            "housekeeping": CpuSet([0, 1]),
            "idle": CpuSet(),
            "topology": SimpleNamespace(threads=2),
            "why": ("an L3 is shared with the host",),
            "warnings": (),
            **other,
        }
    )


def together(*plans: Any, **refused: str) -> Any:
    """Several plans, and what was refused."""
    return SimpleNamespace(plans=plans, refused=refused)


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [
        ({"pins_within": ["0-3", "4-7"]}, planned("4-7"), planned("2-5")),
        ({"cores": 2}, planned("4-7"), planned("4,6-7,2")),
        ({"threads": 2}, planned("4-7"), planned("4", topology=SimpleNamespace(threads=1))),
        ({"l3": 1}, planned("4-7"), planned("2-5")),
        ({"l3_apart": True}, planned("4-7"), planned("2-3")),
        ({"l2_clean": True}, planned("4-7"), planned("4-7", emulator=CpuSet([4]))),
        ({"idle": True}, planned("4,6", idle=CpuSet([5, 7])), planned("4,6", idle=CpuSet([5]))),
        ({"emulator_within": "0-3"}, planned("4-7"), planned("4-7", emulator=CpuSet([3, 4]))),
        ({"emulator_on_node": True}, planned("4-7"), planned("4-7", emulator=CpuSet([8]))),
        ({"iothreads_within": "0-3"}, planned("4-7"), planned("4-7", iothreads=[])),
        (
            {"iothreads_own": True},
            planned("4-7", iothreads=[SimpleNamespace(id=1, cpus=CpuSet([2]))]),
            planned("4-7"),
        ),
        ({"host_within": "0-3"}, planned("4-7"), planned("4-7", housekeeping=CpuSet([7]))),
        ({"host_has": "0"}, planned("4-7"), planned("4-7", housekeeping=CpuSet([1]))),
        ({"nodes": ["0"]}, planned("4-7"), planned("4-7", cells=[])),
        ({"cells": 1}, planned("4-7"), planned("4-7", cells=[])),
        ({"page_kib": [2048]}, planned("4"), planned("4", cells=[SimpleNamespace(page_kib=4)])),
        ({"memory_mode": "strict"}, planned("4-7"), planned("4-7", memory_mode="preferred")),
        ({"told": ["l3.*shared"]}, planned("4-7"), planned("4-7", why=())),
        ({"untold": ["l3"]}, planned("4-7", why=()), planned("4-7")),
        (
            {"float_within": ["0-3"], "float_at_least": 2},
            planned("", vcpus=[SimpleNamespace(vcpu=0, cpus=CpuSet([0, 1]))]),
            planned("", vcpus=[SimpleNamespace(vcpu=0, cpus=CpuSet([4]))]),
        ),
        ({"even": True}, planned("4-7"), planned("4-7", cells=[])),
        ({"either": [{"cores": 1}, {"cores": 2}]}, planned("4-7"), planned("2-7")),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_predicate_tells_right_from_wrong(wanted: Any, right: Any, wrong: Any) -> None:
    """Each holds for one plan, and says of the other what is wrong."""
    assert failures(wanted, together(right), HOST) == []
    assert failures(wanted, together(wrong), HOST) != []


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [
        ({"placed": 1}, together(planned("4-5")), together()),
        ({"placed_at_least": 1}, together(planned("4-5")), together()),
        (
            {"emulator_load_most": 1},
            together(planned("4-5"), planned("6-7")),
            together(*[planned("4-5", emulator=CpuSet([0]))] * 2),
        ),
        ({"refused": ["2 .*free"]}, together(vm="2 CPUs are free"), together(vm="no")),
        ({"refused": ["free"]}, together(vm="2 CPUs are free"), together(planned("4-5"))),
        ({}, together(planned("4-5")), together(vm="no room")),
    ],
)
def test_predicates_of_several_vms(wanted: Any, right: Any, wrong: Any) -> None:
    """They look at all VMs of an entry; a refusal that no predicate asks for is wrong."""
    assert failures(wanted, right, HOST) == []
    assert failures(wanted, wrong, HOST) != []


@pytest.mark.parametrize(
    ("plan", "wrong"),
    [
        (planned("4-7"), []),
        (planned("2-5", emulator=CpuSet([3])), ["host or QEMU on 3, a core of dedicated vCPUs"]),
        (planned("4-7", housekeeping=CpuSet([0])), ["the host keeps 0"]),
        (
            planned("4-7", topology=SimpleNamespace(threads=1)),
            ["guest threads 1 on 2 host cores"],
        ),
        (
            planned(
                "4-7",
                vcpus=[
                    SimpleNamespace(vcpu=at, cpus=CpuSet([cpu]))
                    for at, cpu in enumerate((4, 6, 5, 7))
                ],
            ),
            ["the threads of a guest core on 4,6", "the threads of a guest core on 5,7"],
        ),
    ],
)
def test_what_no_expert_does(plan: Any, wrong: list[str]) -> None:
    """No entry allows it: cores are kept apart, the host keeps two CPUs, threads are true."""
    assert list(always(Placed(plan, HOST))) == wrong


def test_two_kinds_without_a_word_are_wrong() -> None:
    """Mixed kinds have to be told."""
    kinds = (*core(0, l3=0), *core(2, l3=0, kind="efficiency"), *core(4, l3=4, kind="performance"))
    host = Host(cpus=kinds, caches=())
    assert list(always(Placed(planned("2-5"), host))) == ["two kinds of cores without a word: 2-5"]
    assert list(always(Placed(planned("2-5", warnings=("two kinds",)), host))) == []
