"""The score of a placement, counted from its pins and cells."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import ceil

from attrs import frozen

from kvmhooks.placement.model import ORDINARY_PAGE_KIB
from kvmhooks.placement.request import AUTO_PAGES, dedicated_of
from kvmhooks.placement.search.capacity import Capacity, NodeCapacity
from kvmhooks.placement.search.objective import ORDER
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
    spec: VmSpec, placed: Placed, capacity: Capacity, affinity: NodeAffinity
) -> dict[str, int]:
    """Return the numbers of ``ORDER``."""
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
    _count_dedicated(spec, placed, capacity, numbers)
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
    if spec.cpu.realtime and capacity.isolated:
        numbers["unisolated"] = int(not own <= capacity.isolated)
    for node in capacity.numa_nodes:
        if own.isdisjoint(node.cpus):
            numbers["l3_blocks"] -= sum(domain.whole * domain.whole for domain in node.domains)
            numbers["node_blocks"] -= node.whole * node.whole
            continue
        left = node.whole
        for domain in node.domains:
            whole = domain.whole
            is_used = False
            for core in domain.cores:
                guests = len(on_core.get(core.cpus, ()))
                if not guests:
                    continue
                is_used = True
                numbers["cores"] += 1
                whole -= core.is_whole
                numbers["beside_host"] |= core.is_beside_host
                if guests > 1 or not core.is_whole:
                    numbers["company"] += guests
                if core.is_slow and spec.cpu.kind is None:
                    numbers["slow"] += (own & CpuSet.from_mask(core.cpus)).mask.bit_count()
            numbers["l3"] += is_used
            numbers["l3_blocks"] -= whole * whole
            left -= domain.whole - whole
        numbers["node_blocks"] -= left * left


def better(score: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Return whether the first score is less than the second."""
    return _numbers(score) < _numbers(other)


def _numbers(score: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(score[name] for name in ORDER)
