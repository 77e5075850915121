"""Ways of L3 caches that are one VM's own: which are free, and which it gets.

The kernel takes masks of ways in a row, of ``min_cbm_bits`` at least, for each cache apart
(Documentation/filesystems/resctrl.rst, «Cache Bit Masks»). The host's own group needs some too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.host.resources import CacheAllocation
from kvmhooks.inventory.usage import Holding
from kvmhooks.placement.model import CacheShare
from kvmhooks.values import CpuSet, union

WHOLE: Final = 100
"""All of a cache's memory bandwidth, in percent."""

Row = tuple[int, int]
"""(the first way, how many)."""


@frozen(kw_only=True)
class Ways:
    """Cache ways that resctrl can divide, with what other VMs have."""

    allocations: tuple[CacheAllocation, ...]
    """One of the L3, or one for code and one for data."""
    full: int
    least: int
    """The fewest ways of a mask."""
    held: Mapping[int, int]
    """By cache, the mask of ways that are others' own."""

    def choose(self, cache: int, count: int) -> int | None:
        """Return the mask of ``count`` ways of a cache in a row, or None when there are not as
        many.

        It is the highest of the shortest row that has them, and leaves the host ``least`` in a
        row.
        """
        count = max(count, self.least)
        free = self.full & ~self.held.get(cache, 0)
        for first, length in sorted(rows(free), key=lambda row: (row[1], -row[0])):
            mask = ((1 << count) - 1) << (first + length - count) if length >= count else 0
            if mask and any(row[1] >= self.least for row in rows(free & ~mask)):
                return mask
        return None


def ways_of(host: Host, holdings: Sequence[Holding]) -> Ways:
    """Return the cache ways that can be divided. Raises ``PlanError`` where there are none."""
    at = "isolation.cache_ways"
    resctrl = host.resctrl
    if resctrl is None or not resctrl.mounted:
        raise PlanError(at, "no mounted resctrl on the host", "/sys/fs/resctrl, mounted")
    allocations = tuple(cache for cache in resctrl.caches if cache.level == 3 and cache.mask)
    if not allocations:
        raise PlanError(at, "an L3 cache that cannot be divided", "a CPU with CAT for the L3")
    if any(cache.level == 3 and cache.numbered_by_cpu for cache in host.caches or ()):
        raise PlanError(at, "L3 caches without the kernel's ids", "Linux 4.10 or newer")
    classes = min(
        (allocation.classes for allocation in allocations if allocation.classes is not None),
        default=None,
    )
    used = max(len(resctrl.groups), sum(bool(holding.ways) for holding in holdings))
    if classes is not None and used >= classes - 1:
        raise PlanError(at, f"{used} of {classes - 1} classes in use", "a free class of resctrl")
    held: dict[int, int] = {}
    for holding in holdings:
        for cache, mask in holding.ways:
            held[cache] = held.get(cache, 0) | mask
    full = allocations[0].mask or 0
    for allocation in allocations:
        full &= (allocation.mask or 0) & ~(allocation.shareable or 0)
    return Ways(
        allocations=allocations,
        full=full,
        least=max(allocation.min_bits or 1 for allocation in allocations),
        held=held,
    )


def cpus_with(ways: Ways, count: int, host: Host) -> CpuSet:
    """Return the CPUs of the L3 caches that have so many ways left."""
    return union(
        cache.cpus
        for cache in host.caches or ()
        if cache.level == 3
        and cache.type != "Instruction"
        and ways.choose(cache.id, count) is not None
    )


def cpus_with_bandwidth(host: Host, holdings: Sequence[Holding], percent: int) -> CpuSet:
    """Return the CPUs of the L3 caches that have so much of their memory bandwidth left.

    libvirt gives no more than all of it to the VMs of a cache together
    (``virResctrlAllocMemoryBandwidth()``, src/util/virresctrl.c). Raises ``PlanError`` where no
    cache has as much.
    """
    held: Counter[int] = Counter()
    for holding in holdings:
        held.update(dict(holding.bandwidth))
    short = [
        cache
        for cache in host.caches or ()
        if cache.level == 3 and held[cache.id] and held[cache.id] + percent > WHOLE
    ]
    left = host.online - union(cache.cpus for cache in short)
    if not left:
        most = max(WHOLE - held[cache.id] for cache in short)
        at = "isolation.memory_bandwidth"
        raise PlanError(at, f"{percent} % beside what other VMs have", f"{most} % at most")
    return left


def shares(ways: Ways, count: int, caches: Iterable[int], host: Host) -> tuple[CacheShare, ...]:
    """Return the ways that the VM gets of each of ``caches``."""
    sizes = {cache.id: cache.size_kib or 0 for cache in host.caches or () if cache.level == 3}
    made = []
    for cache in sorted(caches):
        mask = ways.choose(cache, count)
        assert mask is not None  # only such caches were chosen
        for allocation in ways.allocations:
            kind = allocation.resource.removeprefix("L3").lower() or "both"
            assert kind in {"both", "code", "data"}
            total = (allocation.mask or 1).bit_count()
            size = sizes.get(cache, 0) * mask.bit_count() // total
            made.append(CacheShare(cache, kind, mask, size))  # type: ignore[arg-type]
    return tuple(made)


def rows(mask: int) -> list[Row]:
    """Return the runs of set bits."""
    return [(first, last - first + 1) for first, last in CpuSet.from_mask(mask).ranges()]
