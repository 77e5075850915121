"""A choice made into pins: which vCPU is on which CPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from kvmhooks.placement.search.capacity import Core
    from kvmhooks.placement.search.choose import Choice


@frozen(kw_only=True)
class Pins:
    """The CPUs of each vCPU."""

    vcpus: Mapping[int, CpuSet]
    idle: CpuSet
    caches: tuple[tuple[int | None, int, int], ...]
    """For each L3 in the order of the vCPUs: (its id, the index of its node, guest cores)."""


def pin(choice: Choice, current: Mapping[int, CpuSet] | None = None) -> Pins:
    """Give each dedicated vCPU a CPU and each other one the pool of its node.

    A VM that has CPUs already keeps as many of them as the choice lets it, vCPU by vCPU.
    """
    request, assignment = choice.request, choice.assignment
    of_site: defaultdict[int, list[int]] = defaultdict(list)
    for cell, node in enumerate(assignment.numa_nodes):
        of_site[node.index].append(cell)
    pins: dict[int, CpuSet] = {}
    own, idle = 0, 0
    caches: list[tuple[int | None, int, int]] = []
    for cells in of_site.values():
        node = assignment.numa_nodes[cells[0]]
        slots: list[list[int]] = []
        for taken, domain, cores in choice.packer.choose(
            node, sum(assignment.cells[cell].cores for cell in cells)
        ):
            caches.append((domain.cache, node.index, taken))
            for core, count in cores:
                made = _slots(choice, core, count)
                slots += made
                if request.spec.cpu.smt == "isolate":
                    idle |= core.cpus & ~sum(made[0])
        guest_cores = [
            first
            for cell in cells
            for first in _guest_cores(
                assignment.cells[cell].vcpus & request.dedicated, request.threads
            )
        ]
        for first, slot in zip(guest_cores, _kept(guest_cores, slots, current or {}), strict=True):
            for place, cpu in enumerate(slot):
                own |= cpu
                pins[first + place] = CpuSet.from_mask(cpu)
    for asked, node in zip(assignment.cells, assignment.numa_nodes, strict=True):
        floating = asked.vcpus - request.dedicated
        if floating:
            pool = CpuSet.from_mask(node.pool.mask & ~own & ~idle)
            pins.update(dict.fromkeys(floating, pool))
    return Pins(vcpus=pins, idle=CpuSet.from_mask(idle), caches=tuple(caches))


def _slots(choice: Choice, core: Core, count: int) -> list[list[int]]:
    """Return the CPUs of each guest core on a core: first those that it has now, then the lowest.

    Each CPU is a mask of its own.
    """
    usable = choice.packer.usable(core)
    now = usable & choice.packer.rules.current
    threads = choice.request.threads
    order = [now, usable & ~now]
    if choice.packer.rules.isolation == "sought":
        quiet = core.isolated
        order = [some & each for some in (quiet, ~quiet) for each in order]
    cpus = sorted([cpu for some in order for cpu in _bits(some)][: threads * count])
    return [cpus[at * threads : (at + 1) * threads] for at in range(count)]


def _bits(mask: int) -> list[int]:
    bits = []
    while mask:
        lowest = mask & -mask
        bits.append(lowest)
        mask ^= lowest
    return bits


def _guest_cores(vcpus: CpuSet, threads: int) -> list[int]:
    return sorted({vcpu - vcpu % threads for vcpu in vcpus})


def _kept(
    guest_cores: Sequence[int], slots: Sequence[list[int]], current: Mapping[int, CpuSet]
) -> Sequence[list[int]]:
    """Return the slot of each guest core: its own one if that is there, the rest in order."""
    if not current:
        return slots
    left = list(slots)
    chosen: dict[int, list[int]] = {}
    for first in guest_cores:
        own = current.get(first)
        if own is not None:
            kept = next((slot for slot in left if own.mask & ~sum(slot) == 0), None)
            if kept is not None:
                chosen[first] = kept
                left.remove(kept)
    rest = iter(left)
    return [chosen[first] if first in chosen else next(rest) for first in guest_cores]
