"""The CPUs of QEMU's emulator threads, and with them of its I/O threads and of vhost's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from kvmhooks.inventory.usage import Holding
from kvmhooks.placement.search.capacity import Capacity, NodeCapacity
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union


def emulator_cpus(
    spec: VmSpec,
    capacity: Capacity,
    vcpus: Mapping[int, CpuSet],
    numa_nodes: Sequence[NodeCapacity],
    reserves: CpuSet = CpuSet(),
) -> CpuSet:
    """Return the CPUs of QEMU's other threads: near the memory, on none of the vCPUs' own.

    Those are ``reserves`` that were chosen for this VM, on a node with such; else the CPUs kept for
    the host that fewest other VMs have theirs on.
    """
    if spec.cpu.placement == "shared":
        return union(vcpus.values())
    near = _nearest_of(capacity.housekeeping, capacity, numa_nodes)
    return union(
        reserves & there or _least_loaded(there, capacity.holdings)
        for node in capacity.numa_nodes
        if (there := near & node.cpus)
    )


def _least_loaded(cpus: CpuSet, holdings: Sequence[Holding]) -> CpuSet:
    """Return those of some CPUs on which fewest VMs have their other threads, spread evenly."""
    shares: dict[int, Fraction] = dict.fromkeys(cpus, Fraction(0))
    for holding in holdings:
        for cpu in holding.helpers & cpus:
            shares[cpu] += Fraction(1, len(holding.helpers))
    least = min(shares.values())
    return CpuSet(cpu for cpu, share in shares.items() if share == least)


def _nearest_of(cpus: CpuSet, capacity: Capacity, used: Sequence[NodeCapacity]) -> CpuSet:
    """Return those of ``cpus`` on the used nodes; else on the nodes nearest to all of them."""
    indexes = {node.index for node in used}
    by_distance: defaultdict[int, CpuSet] = defaultdict(CpuSet)
    for node in capacity.numa_nodes:
        there = cpus & node.cpus
        if there:
            is_used = node.index in indexes
            away = 0 if is_used else sum(other.distances[node.index] for other in used)
            by_distance[away] |= there
    return by_distance[min(by_distance)] if by_distance else cpus
