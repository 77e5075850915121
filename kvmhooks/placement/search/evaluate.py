"""The score of a placement, counted from its pins and cells."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import ceil

from attrs import frozen

from kvmhooks.placement.model import ORDINARY_PAGE_KIB
from kvmhooks.placement.request import AUTO_PAGES, dedicated_of
from kvmhooks.placement.search.capacity import (
    LEAST_KEPT,
    Capacity,
    Core,
    NodeCapacity,
    isolation_of,
)
from kvmhooks.placement.search.host_cpus import LOW_POWER, ranks_of
from kvmhooks.placement.search.objective import ORDER
from kvmhooks.placement.search.packing import crowd
from kvmhooks.placement.search.search import NodeAffinity
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union


@frozen(kw_only=True)
class Placed:
    """A placement without its reasons: what the score is counted from."""

    vcpus: Mapping[int, CpuSet]
    threads: int
    page_kib: int
    cells: tuple[tuple[CpuSet, int, NodeCapacity], ...]
    """(vCPUs, pages or KiB of ordinary memory, node) of each cell."""


def score(
    spec: VmSpec,
    placed: Placed,
    capacity: Capacity,
    affinity: NodeAffinity,
    *,
    reserves: CpuSet = CpuSet(),
) -> dict[str, int]:
    """Return the numbers of ``ORDER``; ``reserves`` are those of the CPUs kept that were chosen."""
    numbers = dict.fromkeys(ORDER, 0)
    numa_nodes = list(dict.fromkeys(node for _, _, node in placed.cells))
    numbers["cohabiting"] = len(placed.cells) - len(numa_nodes)
    numbers["nodes"] = len(numa_nodes)
    numbers["distance"] = sum(
        node.distances[other.index]
        for node in numa_nodes
        for other in numa_nodes
        if node is not other
    )
    used = {node.index for node in numa_nodes}
    numbers["remote_devices"] = sum(
        count for index, count in affinity.preferred.items() if index not in used
    )
    if spec.memory.hugepages == "auto":
        numbers["small_pages"] = AUTO_PAGES.index(placed.page_kib)
    if not spec.memory.cell and spec.memory.cells is None and spec.cpu.placement != "mixed":
        numbers["unevenness"] = sum(len(vcpus) ** 2 for vcpus, _, _ in placed.cells)
    if placed.page_kib > ORDINARY_PAGE_KIB:
        numbers["allocated"] = _allocated(placed)
    _count_shared(spec, placed, capacity, numbers)
    if dedicated_of(spec):
        _count_dedicated(spec, placed, capacity, numbers)
        numbers["fast_reserves"] = _fast_reserves(reserves, capacity)
    return numbers


def _allocated(placed: Placed) -> int:
    needed: Counter[NodeCapacity] = Counter()
    for _, pages, node in placed.cells:
        needed[node] += pages
    return sum(max(count - node.pages.get(placed.page_kib, 0), 0) for node, count in needed.items())


def _count_shared(
    spec: VmSpec, placed: Placed, capacity: Capacity, numbers: dict[str, int]
) -> None:
    dedicated = dedicated_of(spec)
    floating: Counter[NodeCapacity] = Counter()
    cores: Counter[NodeCapacity] = Counter()
    for vcpus, _, node in placed.cells:
        floating[node] += len(vcpus - dedicated)
        cores[node] += len(vcpus & dedicated) // placed.threads
    each = placed.threads if spec.cpu.smt == "share" else capacity.threads
    for node, count in floating.items():
        if count:
            pool = len(node.pool) - each * cores[node]
            numbers["crowding"] = max(numbers["crowding"], -(-count // pool))
            numbers["load"] += ceil((count + node.load) * 1000 / pool)


def _count_dedicated(
    spec: VmSpec, placed: Placed, capacity: Capacity, numbers: dict[str, int]
) -> None:
    dedicated = dedicated_of(spec)
    own = union(placed.vcpus[vcpu] for vcpu in dedicated)
    on_core: defaultdict[int, set[int]] = defaultdict(set)
    host = capacity.host
    for vcpu in dedicated:
        on_core[host.core_of(placed.vcpus[vcpu].first()).mask].add(vcpu // placed.threads)
    numbers["narrow"] = int(len(capacity.housekeeping) < LEAST_KEPT)
    rules = (isolation_of(spec, capacity) == "sought", spec.cpu.kind is None)
    for node in capacity.numa_nodes:
        if own.isdisjoint(node.cpus):
            numbers["l3_blocks"] -= sum(domain.whole * domain.whole for domain in node.domains)
            numbers["node_blocks"] -= node.whole * node.whole
            continue
        left = node.whole
        used: list[tuple[Core, int]] = []
        for domain in node.domains:
            here = [(core, count) for core in domain.cores if (count := len(on_core[core.cpus]))]
            whole = domain.whole - sum(core.is_whole for core, _ in here)
            used += here
            numbers["l3"] += bool(here)
            numbers["shared_l3"] += bool(here) and domain.is_kept
            numbers["l3_blocks"] -= whole * whole
            left -= domain.whole - whole
        numbers["node_blocks"] -= left * left
        for core, count in used:
            _count_core(core, count, own.mask & core.cpus, rules, numbers)
        _count_node(spec, node, [core for core, _ in used], capacity, numbers)


def _count_node(
    spec: VmSpec,
    node: NodeCapacity,
    used: Sequence[Core],
    capacity: Capacity,
    numbers: dict[str, int],
) -> None:
    """Count what a node has once, for all of its cores that guest cores have."""
    if node.kept:
        numbers["helpers"] += crowd(node.helpers + 1, node.kept)
    numbers["far_helpers"] += not node.kept
    numbers["cores"] += len(used)
    numbers["kinds"] += len({core.rank for core in used}) - 1
    quiet = sum(core.isolated > 0 for core in used)
    if isolation_of(spec, capacity) == "spared":
        numbers["on_isolated"] += (quiet > 0) + (0 < quiet < len(used))


def _count_core(
    core: Core, guests: int, own: int, rules: tuple[bool, bool], numbers: dict[str, int]
) -> None:
    """Count what a core adds that so many guest cores have, on the CPUs of the mask ``own``.

    ``rules`` are whether isolated CPUs are sought, and whether any kind of core may be taken.
    """
    is_sought, is_any_kind = rules
    cpus = own.bit_count()
    numbers["beside_host"] |= core.is_beside_host
    numbers["company"] += guests if guests > 1 or not core.is_whole else 0
    numbers["shared_l2"] += guests if core.is_unclean else 0
    numbers["low_power"] += cpus if core.rank == LOW_POWER else 0
    numbers["slow"] += cpus if 0 < core.rank < LOW_POWER and is_any_kind else 0
    if core.isolated != core.cpus and is_sought:
        numbers["unisolated"] += 2 * cpus - (own & core.isolated).bit_count()


def _fast_reserves(reserves: CpuSet, capacity: Capacity) -> int:
    ranks = ranks_of(capacity.host)
    if not ranks:
        return 0
    cores = (capacity.host.core_of(cpu) & capacity.online for cpu in reserves)
    return sum(2 - max(ranks.get(cpu, 0) for cpu in core) for core in cores)


def better(score: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Return whether the first score is less than the second."""
    return _numbers(score) < _numbers(other)


def _numbers(score: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(score[name] for name in ORDER)
