"""The files of each CPU and node, made into CPUs that do not contradict each other."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from kvmhooks.host.cpu.nodes import NODES
from kvmhooks.host.files.lists import CPUS
from kvmhooks.host.model import Cpu
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvmhooks.host.cpu.cpus import CpuFiles
    from kvmhooks.host.files.flaws import Flaws
    from kvmhooks.host.files.lists import CpuLists
    from kvmhooks.host.frequency import FrequencyPolicy
    from kvmhooks.host.model import Cache, Node


class Evidence(NamedTuple):
    """Everything that was read of the CPUs."""

    topologies: Sequence[CpuFiles]
    lists: CpuLists
    online: CpuSet
    caches: Sequence[Cache]
    nodes: Sequence[Node]
    policies: Mapping[int, FrequencyPolicy]
    """Of each CPU."""


def online_cpus(topologies: Iterable[CpuFiles], lists: CpuLists) -> CpuSet:
    """Return the kernel's list, or what the CPUs say one by one where the tree has no list."""
    if lists.online is not None:
        return lists.online
    return CpuSet(topology.id for topology in topologies if topology.own_online)


def assemble(evidence: Evidence, flaws: Flaws) -> tuple[Cpu, ...]:
    """Make the CPUs. One that is listed as online and has no directory is there, unknown."""
    lists, online = evidence.lists, evidence.online
    siblings = _siblings(evidence.topologies, online, flaws)
    node_of = _node_of(evidence.nodes, flaws)
    l2 = _cache_of(evidence.caches, 2)
    l3 = _cache_of(evidence.caches, 3)
    found = {topology.id: topology for topology in evidence.topologies}
    for cpu in online - CpuSet(found):
        flaws.add(f"{CPUS}/cpu{cpu}", "is not there, though the CPU is listed as online")
    made = []
    for number in CpuSet(found) | online:
        topology = found.get(number)
        made.append(
            Cpu(
                id=number,
                online=_is_online(topology, lists) if topology is not None else True,
                siblings=siblings.get(number),
                l2=l2.get(number),
                l3=l3.get(number),
                node=node_of.get(number),
                isolated=None if lists.isolated is None else number in lists.isolated,
                nohz_full=None if lists.nohz_full is None else number in lists.nohz_full,
                **(_own_facts(topology, evidence.policies.get(number)) if topology else {}),
            )
        )
    return tuple(made)


def _own_facts(topology: CpuFiles, policy: FrequencyPolicy | None) -> dict[str, Any]:
    """Return what the CPU and its frequency policy say, and nobody else can contradict."""
    ranking = policy.ranking if policy is not None else None
    return {
        **topology.ids,
        "max_khz": topology.max_khz if policy is None else policy.hardware_max_khz,
        "base_khz": topology.base_khz if policy is None else policy.base_khz,
        "capacity": topology.capacity,
        "preference": topology.highest_perf if ranking is None else ranking,
    }


def _is_online(topology: CpuFiles, lists: CpuLists) -> bool | None:
    return topology.own_online if lists.online is None else topology.id in lists.online


def _siblings(topologies: Iterable[CpuFiles], online: CpuSet, flaws: Flaws) -> dict[int, CpuSet]:
    """Return the siblings of each CPU, where all of them that say something say the same.

    Those that say so are counted once: to ask each about each takes minutes with 8,192 CPUs.
    """
    told = {topology.id: topology.siblings for topology in topologies if topology.siblings}
    speakers = CpuSet(told)
    said_by = Counter(
        siblings & online for cpu, siblings in told.items() if cpu in siblings & online
    )
    agreed: dict[int, CpuSet] = {}
    for cpu, siblings in told.items():
        if cpu not in online:
            continue
        path = f"{CPUS}/cpu{cpu}/topology/core_cpus"
        others = siblings & online
        if cpu not in siblings:
            flaws.add(path, f"{siblings.brief()} does not hold the CPU itself")
        elif said_by[others] + len(others - speakers) != len(others):
            flaws.add(path, f"{siblings.brief()} contradicts what the others of it say")
        else:
            agreed[cpu] = others
    return agreed


def _node_of(nodes: Sequence[Node], flaws: Flaws) -> dict[int, int]:
    """Return the node of each CPU that is in one only."""
    seen = contested = CpuSet()
    for node in nodes:
        cpus = node.cpus or CpuSet()
        contested |= seen & cpus
        seen |= cpus
    if contested:
        flaws.add(NODES, f"CPUs {contested.brief()} are in more than one node")
    return {cpu: node.id for node in nodes if node.cpus for cpu in node.cpus - contested}


def _cache_of(caches: Iterable[Cache], level: int) -> dict[int, int]:
    """Return the id of the data or unified cache of a level for each CPU."""
    return {
        cpu: cache.id
        for cache in caches
        if cache.level == level and cache.type != "Instruction"
        for cpu in cache.cpus
    }
