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
    given: Cpus | None
    """The housekeeping that somebody gives; None: the placement has reserves."""
    reserves: Cpus = frozenset()

    @cached_property
    def housekeeping(self) -> Cpus:
        """The CPUs that are ``kept``."""
        return self.kept_before | self.reserves

    @cached_property
    def kept_before(self) -> Cpus:
        """Those of them that are no reserves."""
        if self.given is not None:
            return self.given
        return frozenset(cpu for other in self.holdings for cpu in self.helping(other))

    def helping(self, holding: Holding) -> Cpus:
        """The CPUs of another VM's QEMU that nobody holds."""
        return frozenset(holding.helpers) & self.online - self.held

    def helpers(self, place: Place) -> int:
        """Return how many other VMs have QEMU's other threads on the kept CPUs of a node."""
        here = self.housekeeping & self.cpus[place]
        return sum(bool(frozenset(other.helpers) & here) for other in self.holdings)

    def reserves_on(self, place: Place) -> list[Cpus]:
        """All reserves of a node; of those that are alike in everything one is tried."""
        found: dict[object, Cpus] = {}
        here = self.cpus[place]
        cores = sorted({self.core[cpu] for cpu in here}, key=min)
        can = {core: core & here & self.free - self.isolated for core in cores}
        for at, core in enumerate(cores):
            if len(can[core]) > 1:
                found.setdefault(self._signature(core), can[core])
            for other in cores[:at]:
                if len(can[core]) == len(can[other]) == 1 and self._are_a_pair(core, other):
                    is_one_module = other in self.mates(core)
                    two = tuple(sorted((self._signature(core), self._signature(other))))
                    found.setdefault((*two, is_one_module), can[core] | can[other])
        return list(found.values())

    def _are_below_one_l3(self, core: Cpus, other: Cpus) -> bool:
        return self.l3[min(core)] == self.l3[min(other)]

    def _are_a_pair(self, core: Cpus, other: Cpus) -> bool:
        return self._are_below_one_l3(core, other) and self.rank(core) == self.rank(other)

    def _signature(self, core: Cpus) -> str:
        """All that makes one core of an L3 another than the next."""

        def own(core: Cpus) -> str:
            counts = [
                len(core & some)
                for some in (self.free, self.eligible, self.isolated, self.held, self.housekeeping)
            ]
            return f"{len(core)} {counts} {self.rank(core)}"

        modules = sorted(own(mate) for mate in self.mates(core))
        return f"{self.l3[min(core)]} {own(core)} {modules}"

    def mates(self, core: Cpus) -> list[Cpus]:
        """The other cores below the same L3 that share a core's L2."""
        known = {cpu.id: cpu.l2 for cpu in self.host.cpus or ()}
        mine = known[min(core)]
        if mine is None:
            return []
        everyone = {self.core[cpu] for cpu in self.node}
        return [
            other
            for other in everyone
            if other != core and known[min(other)] == mine and self._are_below_one_l3(core, other)
        ]

    def rank(self, core: Cpus) -> int:
        """The kind of a core: 0 performance, 1 efficiency, 2 low-power."""
        if not any(self.kind[cpu] for cpu in self.online):
            return 0
        known = {cpu.id: cpu.l3 for cpu in self.host.cpus or () if cpu.online}
        if not any(self.kind[cpu] == "efficiency" for cpu in core):
            return 0
        has_none = all(known[cpu] is None for cpu in core)
        return 2 if has_none and any(cache is not None for cache in known.values()) else 1

    @cached_property
    def online(self) -> Cpus:
        return frozenset(cpu.id for cpu in self.host.cpus or () if cpu.online)

    @cached_property
    def cpus(self) -> dict[Place, Cpus]:
        """The online CPUs of each node; of a node with memory only, none."""
        if not self.host.nodes:
            return {None: self.online}
        found: dict[Place, Cpus] = {}
        for node in self.host.nodes:  # no CPU is counted twice
            before = frozenset[int]().union(*found.values())
            found[node.id] = (frozenset(node.cpus or ()) & self.online) - before
        return found

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

    @cached_property
    def isolated(self) -> Cpus:
        kernel = self.host.kernel
        if kernel is None:
            return frozenset()
        return (frozenset(kernel.isolated or ()) | frozenset(kernel.nohz_full or ())) & self.online

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
        """The CPUs to float over; low-power cores only where a node has no others."""
        every = self.online - self.isolated - self.held
        quick = frozenset(cpu for cpu in every if self.rank(self.core[cpu]) < 2)
        return frozenset(
            cpu for place, here in self.cpus.items() for cpu in (quick & here or every & here)
        )

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
        """From node to node; what caches and packages suggest where it is not known."""
        for node in self.host.nodes or ():
            if node.id == place and node.distances is not None:
                order = [each.id for each in self.host.nodes or ()]
                return node.distances[order.index(other)]  # type: ignore[arg-type]  # a known node
        there, back = self.cpus[place], self.cpus[other]
        known = {cpu.id: cpu for cpu in self.host.cpus or ()}
        if any(known[a].l3 == known[b].l3 is not None for a in there for b in back):
            return 12
        if any(known[a].package == known[b].package is not None for a in there for b in back):
            return 16
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
    housekeeping: Iterable[int] | None,
    *,
    uuid: str | None = None,
) -> Capacity:
    """The capacity for a VM; what it holds itself (``uuid``) does not count."""
    holdings = (claim if isinstance(claim, Holding) else of_claim(claim) for claim in claims)
    others = tuple(holding for holding in holdings if uuid is None or holding.uuid != uuid)
    given = None if housekeeping is None else frozenset(housekeeping)
    return Capacity(host, spec, others, given)
