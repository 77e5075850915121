"""The CPUs of QEMU's emulator threads, and with them of its I/O threads and of vhost's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from kvmhooks.placement.search.capacity import Capacity, NodeCapacity
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union


def emulator_cpus(
    spec: VmSpec,
    capacity: Capacity,
    vcpus: Mapping[int, CpuSet],
    numa_nodes: Sequence[NodeCapacity],
) -> CpuSet:
    """Return the CPUs of QEMU's other threads: near the memory, on none of the vCPUs' own."""
    if spec.cpu.placement == "shared":
        return union(vcpus.values())
    return _nearest_of(capacity.housekeeping, capacity, numa_nodes)


def _nearest_of(cpus: CpuSet, capacity: Capacity, used: Sequence[NodeCapacity]) -> CpuSet:
    """Return those of ``cpus`` on the used nodes; else on the nodes nearest to all of them."""
    by_distance: defaultdict[int, CpuSet] = defaultdict(CpuSet)
    for node in capacity.numa_nodes:
        there = cpus & node.cpus
        if there:
            away = 0 if node in used else sum(other.distances[node.index] for other in used)
            by_distance[away] |= there
    return by_distance[min(by_distance)] if by_distance else cpus
