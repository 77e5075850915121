"""The kinds of a host's CPUs, which of them are isolated, and which are the host's own."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from kvmhooks.host.model import Host

LOW_POWER: Final = 2
"""The rank of a low-power core; performance is 0, efficiency 1."""


def choose_housekeeping(host: Host, taken: CpuSet) -> CpuSet:
    """Return the CPUs that are the host's where no placement has a say in it.

    They are a core of two CPUs or more, else two cores below one L3, else a CPU, of the slowest
    kind. Isolated CPUs are never chosen, nor those that a VM holds, also where their siblings are.
    It is the first that leaves something on its node, and something on the host if that has more
    than one core: else one of the core's threads.
    """
    online = host.online
    usable = online - isolated_of(host) - taken
    ranks = ranks_of(host)
    nodes: defaultdict[int | None, int] = defaultdict(int)
    for cpu in host.cpus or ():
        nodes[cpu.node] |= (1 << cpu.id) if cpu.online else 0
    found: list[tuple[tuple[bool, int, bool, int], CpuSet]] = []
    alone: dict[object, CpuSet] = {}
    seen = 0
    for first in usable:
        if seen >> first & 1:
            continue
        core = host.core_of(first)
        seen |= core.mask
        cpu = host.cpu(first)
        reserve = core & usable
        if len(reserve) == 1:
            place = (cpu.node, cpu.l3, ranks.get(first, 0))
            if place not in alone:
                alone[place] = reserve
                continue
            reserve |= alone.pop(place)
        rank = ranks.get(first, 0)
        found.append(
            ((reserve >= online, -rank, reserve.mask == nodes[cpu.node], reserve.first()), reserve)
        )
    best = min(found, default=None, key=lambda each: each[0])
    if best is not None and not best[0][0]:
        return best[1]
    return CpuSet((usable.first(),)) if usable else CpuSet()


def ranks_of(host: Host) -> dict[int, int]:
    """Return the kind of each CPU that has one: 0 performance, 1 efficiency, 2 low-power.

    Low-power cores are efficiency cores on a tile of their own, behind no L3 that others have.
    """
    cpus = [cpu for cpu in host.cpus or () if cpu.online]
    has_l3 = any(cpu.l3 is not None for cpu in cpus)
    return {
        cpu.id: 0 if cpu.kind == "performance" else LOW_POWER if has_l3 and cpu.l3 is None else 1
        for cpu in cpus
        if cpu.kind is not None
    }


def isolated_of(host: Host) -> CpuSet:
    """Return the CPUs that the kernel does not balance, or keeps its tick from.

    ``isolcpus=managed_irq`` alone leaves ``isolated`` empty: who prepares a host so isolates at run
    time (Documentation/admin-guide/cpu-isolation.rst).
    """
    if host.kernel is None:
        return CpuSet()
    return (host.kernel.isolated or CpuSet()) | (host.kernel.nohz_full or CpuSet())


def services_of(host: Host) -> CpuSet:
    """Return the CPUs that systemd keeps its services on, if those are some and not all."""
    services = (host.kernel.services if host.kernel else None) or CpuSet()
    return services if host.online - services else CpuSet()
