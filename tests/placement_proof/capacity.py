"""The capacity of a host, read from the words of ``kvmhooks.placement.search.objective`` alone.

Nothing of the planner is used here: plain sets, dictionaries and loops, as slow as they like to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cached_property

from attrs import frozen

from kvmhooks.host.model import Host
from kvmhooks.inventory.usage import Holding, of_claim
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.spec import VmSpec

ANY_NODE = -1
Place = int | None
"""A node's number; None is the one node of a host without nodes."""
Cpus = frozenset[int]


@frozen(eq=False)
class Capacity:
    """A host beside what other VMs hold of it, for one VM."""

    host: Host
    spec: VmSpec
    holdings: tuple[Holding, ...]
    housekeeping: Cpus

    @cached_property
    def online(self) -> Cpus:
        return frozenset(cpu.id for cpu in self.host.cpus or () if cpu.online)

    @cached_property
    def cpus(self) -> dict[Place, Cpus]:
        """The online CPUs of each node; of a node with memory only, none."""
        if not self.host.nodes:
            return {None: self.online}
        return {node.id: frozenset(node.cpus or ()) & self.online for node in self.host.nodes}

    @cached_property
    def core(self) -> dict[int, Cpus]:
        """The core of each CPU."""
        return {
            cpu.id: frozenset(cpu.siblings or (cpu.id,))
            for cpu in self.host.cpus or ()
            if cpu.online
        }

    @cached_property
    def node(self) -> dict[int, Place]:
        return {cpu: place for place, cpus in self.cpus.items() for cpu in cpus}

    @cached_property
    def l3(self) -> dict[int, tuple[Place, int | None]]:
        """The L3 of each CPU; without one, all such CPUs of a node are together."""
        known = {cpu.id: cpu.l3 for cpu in self.host.cpus or ()}
        return {cpu: (self.node[cpu], known[cpu]) for cpu in self.node}

    @cached_property
    def kind(self) -> dict[int, str | None]:
        return {cpu.id: cpu.kind for cpu in self.host.cpus or ()}

    def is_slow(self, cpu: int) -> bool:
        """Return whether a CPU is on a core that has an efficiency CPU."""
        return any(self.kind[other] == "efficiency" for other in self.core[cpu])

    @cached_property
    def isolated(self) -> Cpus:
        kernel = self.host.kernel
        return frozenset((kernel.isolated if kernel else None) or ()) & self.online

    @cached_property
    def held(self) -> Cpus:
        sets = [
            each
            for holding in self.holdings
            for each in (holding.exclusive, holding.dedicated, holding.idle)
        ]
        return frozenset(cpu for cpus in sets for cpu in cpus)

    @cached_property
    def free(self) -> Cpus:
        return self.online - self.held - self.housekeeping

    @cached_property
    def whole(self) -> frozenset[Cpus]:
        """The cores of which all CPUs are free."""
        return frozenset(core for core in self.core.values() if core <= self.free)

    @cached_property
    def eligible(self) -> Cpus:
        wanted = self.spec.cpu.kind
        if wanted is None or not any(self.kind.values()):
            return self.free
        return frozenset(cpu for cpu in self.free if self.kind[cpu] == wanted)

    @cached_property
    def pool(self) -> Cpus:
        return self.online - self.isolated - self.held

    @cached_property
    def widest(self) -> int:
        """The threads of the host's largest core."""
        return max(map(len, self.core.values()))

    def load(self, place: Place) -> Fraction:
        """Return how many vCPUs of other VMs float over the CPUs of a node."""
        total = Fraction(0)
        for holding in self.holdings:
            for cpus, vcpus in holding.floating:
                over = frozenset(cpus) & self.online
                if over:
                    total += Fraction(vcpus * len(over & self.cpus[place]), len(over))
        return total

    def distance(self, place: Place, other: Place) -> int:
        """From node to node; 20 where it is not known."""
        for node in self.host.nodes or ():
            if node.id == place and node.distances is not None:
                order = [each.id for each in self.host.nodes or ()]
                return node.distances[order.index(other)]  # type: ignore[arg-type]  # a known node
        return 20

    def ordinary_mib(self, place: Place) -> int | None:
        """Room for ordinary pages; None is without bounds."""
        total, _, pools = self._memory(place)
        if total is None:
            return None
        taken = sum(size * count for size, (count, _) in pools.items())
        theirs = sum(
            kib for holding in self.holdings for node, kib in holding.memory if _is_at(node, place)
        )
        return max(0, total - taken - theirs) // 1024

    @cached_property
    def free_pages(self) -> dict[tuple[Place, int], int]:
        """Huge pages of each size on each node that are there for this VM."""
        sizes = {size for place in self.cpus for size in self._memory(place)[2]}
        left = {
            (place, size): self._memory(place)[2].get(size, (0, 0))[1]
            for place in self.cpus
            for size in sizes
        }
        promised = [each for holding in self.holdings for each in holding.hugepages]
        for node, size, count in promised:
            if (node, size) in left:
                left[node, size] -= count
        for node, size, count in promised:
            if node != ANY_NODE:
                continue
            still = count
            for place in sorted(self.cpus, key=lambda each: -1 if each is None else each):
                if (place, size) in left:
                    taken = min(still, max(0, left[place, size]))
                    left[place, size] -= taken
                    still -= taken
        return {key: max(0, count) for key, count in left.items()}

    def allocatable(self, place: Place, size: int) -> int:
        """Huge pages that could be added; none where the kernel offers no pages of that size."""
        total, free, pools = self._memory(place)
        if total is None or free is None or size not in pools:
            return 0
        return max(0, (100 * free - 5 * total) // (100 * size))

    def _memory(self, place: Place) -> tuple[int | None, int | None, Mapping[int, tuple[int, int]]]:
        """MemTotal and MemFree in KiB, and the pools as size to (total, free)."""
        if place is None:
            memory = self.host.memory
            if memory is None:
                return None, None, {}
            total, free, pools = memory.total_kib, memory.free_kib, memory.hugepages
        else:
            node = self.host.node(place)
            total, free, pools = node.memory_kib, node.free_kib, node.hugepages
        return (
            total,
            free,
            {pool.size_kib: (pool.total or 0, pool.free or 0) for pool in pools or ()},
        )

    def device_nodes(self, locality: str) -> list[int]:
        """The known nodes of the VM's devices of this locality."""
        return [node for node in self._nodes_of_devices(locality) if node is not None]

    @property
    def is_promised_locality(self) -> bool:
        """A device must be local and nobody knows where it is: that cannot be promised."""
        return len(self.cpus) > 1 and None in self._nodes_of_devices("required")

    def _nodes_of_devices(self, locality: str) -> list[int | None]:
        nodes = {device.address: device.node for device in self.host.pci or ()}
        return [nodes[device.chosen] for device in self.spec.pci if device.locality == locality]


def _is_at(node: int, place: Place) -> bool:
    return node == (ANY_NODE if place is None else place)


def capacity_of(
    spec: VmSpec,
    host: Host,
    claims: Iterable[Claim | Holding],
    housekeeping: Iterable[int],
    *,
    uuid: str | None = None,
) -> Capacity:
    """The capacity for a VM; what it holds itself (``uuid``) does not count."""
    holdings = (claim if isinstance(claim, Holding) else of_claim(claim) for claim in claims)
    others = tuple(holding for holding in holdings if uuid is None or holding.uuid != uuid)
    return Capacity(host, spec, others, frozenset(housekeeping))
