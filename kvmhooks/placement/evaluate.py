"""The score of a placement, counted from its pins and cells."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import ceil

from attrs import frozen

from kvmhooks.placement.ground import Ground, Site
from kvmhooks.placement.model import ORDINARY_PAGE_KIB
from kvmhooks.placement.objective import ORDER
from kvmhooks.placement.request import AUTO_PAGES, dedicated_of
from kvmhooks.placement.search import Near
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union


@frozen(kw_only=True)
class Placed:
    """A placement without its reasons: what the score is counted from."""

    vcpus: Mapping[int, CpuSet]
    threads: int
    page_kib: int
    cells: tuple[tuple[CpuSet, int, Site], ...]
    """(vCPUs, pages or KiB of ordinary memory, node) of each cell."""


def score(spec: VmSpec, placed: Placed, ground: Ground, near: Near) -> dict[str, int]:
    """The numbers of ``ORDER``."""
    numbers = dict.fromkeys(ORDER, 0)
    sites = list(dict.fromkeys(site for _, _, site in placed.cells))
    numbers["cohabiting"] = len(placed.cells) - len(sites)
    numbers["nodes"] = len(sites)
    numbers["distance"] = sum(
        one.distances[other.index] for one in sites for other in sites if one is not other
    )
    used = {site.index for site in sites}
    numbers["remote_devices"] = sum(
        count for index, count in near.preferred.items() if index not in used
    )
    if spec.memory.hugepages == "auto":
        numbers["small_pages"] = AUTO_PAGES.index(placed.page_kib)
    if not spec.memory.cell and spec.memory.cells is None and spec.cpu.placement != "mixed":
        numbers["unevenness"] = sum(len(vcpus) ** 2 for vcpus, _, _ in placed.cells)
    if placed.page_kib > ORDINARY_PAGE_KIB:
        numbers["allocated"] = _allocated(placed)
    _count_shared(spec, placed, ground, numbers)
    _count_dedicated(spec, placed, ground, numbers)
    return numbers


def _allocated(placed: Placed) -> int:
    needed: Counter[Site] = Counter()
    for _, pages, site in placed.cells:
        needed[site] += pages
    return sum(max(count - site.pages.get(placed.page_kib, 0), 0) for site, count in needed.items())


def _count_shared(spec: VmSpec, placed: Placed, ground: Ground, numbers: dict[str, int]) -> None:
    dedicated = dedicated_of(spec)
    floating: Counter[Site] = Counter()
    cores: Counter[Site] = Counter()
    for vcpus, _, site in placed.cells:
        floating[site] += len(vcpus - dedicated)
        cores[site] += len(vcpus & dedicated) // placed.threads
    each = placed.threads if spec.cpu.smt == "share" else ground.threads
    for site, count in floating.items():
        if count:
            pool = len(site.pool) - each * cores[site]
            numbers["crowding"] = max(numbers["crowding"], -(-count // pool))
            numbers["load"] += ceil((count + site.load) * 1000 / pool)


def _count_dedicated(spec: VmSpec, placed: Placed, ground: Ground, numbers: dict[str, int]) -> None:
    dedicated = dedicated_of(spec)
    own = union(placed.vcpus[vcpu] for vcpu in dedicated)
    on_core: defaultdict[int, set[int]] = defaultdict(set)
    host = ground.host
    for vcpu in dedicated:
        on_core[host.core_of(placed.vcpus[vcpu].first()).mask].add(vcpu // placed.threads)
    if spec.cpu.realtime and ground.isolated:
        numbers["unisolated"] = int(not own <= ground.isolated)
    for site in ground.sites:
        if own.isdisjoint(site.cpus):
            numbers["l3_blocks"] -= sum(domain.whole * domain.whole for domain in site.domains)
            numbers["node_blocks"] -= site.whole * site.whole
            continue
        left = site.whole
        for domain in site.domains:
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


def better(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether the first score is less than the second."""
    return _numbers(one) < _numbers(other)


def _numbers(said: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(said[name] for name in ORDER)
