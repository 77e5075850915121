"""The capacity of a host: its nodes, with what nobody holds of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attrs import field, frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host, HugePages, Memory
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE
from kvmhooks.placement.search.host_cpus import (
    LOW_POWER,
    isolated_of,
    ranks_of,
    services_of,
)
from kvmhooks.values import CpuSet, union

if TYPE_CHECKING:
    from kvmhooks.inventory.usage import Holding
    from kvmhooks.spec.model import VmSpec

REMOTE_DISTANCE: Final = 20
"""The kernel's own for nodes of which the firmware tells none (include/linux/topology.h)."""

SAME_PACKAGE: Final = 16
SAME_L3: Final = 12
"""Between nodes of which the firmware tells none and the topology more: of sub-NUMA clusters, whose
nodes share an L3 or a package, firmware tells 11 to 12, of nodes that share a package less than of
others."""

LEAST_KEPT: Final = 2
"""The host keeps so many CPUs, if there are more than that."""

KEPT_FREE: Final = 20
"""One part in so many of a node's memory is not made into huge pages."""


class Core(NamedTuple):
    """One core; sets of CPUs are masks here."""

    cpus: int
    free: int
    isolated: int
    """Those that the kernel does not balance, or keeps its tick from."""
    mates: int
    """CPUs of other cores below the same L3 that share its L2."""
    rank: int
    """Its kind: 0 performance, 1 efficiency, 2 low-power."""
    is_beside_host: bool
    """One of its CPUs is kept."""
    is_unclean: bool
    """One of its mates is kept or held."""

    @property
    def is_whole(self) -> bool:
        """All of it is free."""
        return self.cpus == self.free


class Kind(NamedTuple):
    """All of a core that counts when every CPU is as good as another."""

    size: int
    free: int
    quiet: int
    """Free CPUs that are isolated."""
    isolated: int
    rank: int
    is_beside_host: bool
    is_unclean: bool


class CacheDomain(NamedTuple):
    """The cores of one node that share an L3 cache."""

    cache: int | None
    cores: tuple[Core, ...]
    whole: int
    """The number of its cores that are whole."""
    kinds: tuple[Kind, ...]
    """Those of its cores, sorted."""
    size_kib: int
    """The size of the cache; 0: not known."""
    is_kept: bool
    """One of its CPUs is kept."""
    likeness: int
    """The same for all whose cores are of the same kinds, and share L2s alike."""


@frozen(eq=False, kw_only=True)
class NodeCapacity:
    """The capacity of one node; on a kernel without NUMA the whole host is one, of no number."""

    index: int
    node: int | None
    cpus: CpuSet
    """All its online CPUs."""
    pool: CpuSet
    """CPUs over which shared vCPUs may float: online, balanced by the kernel, nobody's own."""
    load: Fraction
    """Shared vCPUs of other VMs on it."""
    kept: int
    """The number of its CPUs that are kept."""
    helpers: int
    """The number of other VMs that have QEMU's other threads on those."""
    domains: tuple[CacheDomain, ...]
    likeness: tuple[int, ...]
    """Those of its L3 caches, sorted: nodes with the same ones are alike."""
    is_hybrid: bool
    """The host has kinds of cores."""
    whole: int
    """The number of its cores that are whole."""
    memory_kib: int | None
    """Room for ordinary memory; None: not known."""
    pages: Mapping[int, int]
    """Free huge pages that nobody was promised: page size in KiB to count."""
    allocatable_kib: int
    """Memory of which more huge pages could be made."""
    distances: tuple[int, ...]
    """To every node, by index."""

    def __str__(self) -> str:
        return "the host" if self.node is None else f"node {self.node}"

    @property
    def ordinary_mib(self) -> int | None:
        """Room for ordinary memory, in MiB; None: not known."""
        return None if self.memory_kib is None else self.memory_kib >> 10

    def room(self, page_kib: int, *, allocate: bool) -> int | None:
        """Return how many pages of a size it has room for."""
        if page_kib not in self.pages:
            return 0
        return self.pages[page_kib] + (self.allocatable_kib // page_kib if allocate else 0)


@frozen(eq=False)
class Capacity:
    """The capacity of a host, node by node."""

    host: Host
    online: CpuSet
    numa_nodes: tuple[NodeCapacity, ...]
    housekeeping: CpuSet
    """The CPUs that are kept: given, or QEMU's other threads of other VMs are there."""
    is_open: bool
    """The placement chooses more of them, its reserves."""
    held: CpuSet
    """CPUs that other VMs have to themselves."""
    isolated: CpuSet
    """Online CPUs that the kernel does not balance, or keeps its tick from."""
    threads: int
    """The threads of the largest core."""
    is_uniform: bool
    """All cores have as many threads."""
    is_flat: bool
    """Each node is as far from any other, there and back."""
    holdings: tuple[Holding, ...]
    own_pages: Mapping[tuple[int | None, int], int]
    packers: dict[tuple[Hashable, int], Any] = field(factory=dict, init=False)
    """The results of ``packing.packer_on`` so far."""

    def least_distance(self, count: int) -> int:
        """Return a bound: no ``count`` nodes have less distance between them, there and back."""
        if count == 1:
            return 0
        sums = sorted(
            sum(
                sorted(away for at, away in enumerate(node.distances) if at != node.index)[
                    : count - 1
                ]
            )
            for node in self.numa_nodes
        )
        return sum(sums[:count])

    @property
    def free(self) -> CpuSet:
        """CPUs that a dedicated vCPU could have."""
        return self.online - self.held - self.housekeeping

    def keeping(self, cpus: CpuSet, *, is_open: bool = False) -> Capacity:
        """Return the same host with just these CPUs kept."""
        if cpus == self.housekeeping and is_open == self.is_open:
            return self
        return measure(self.host, self.holdings, cpus, self.own_pages, is_open=is_open)


def measure(
    host: Host,
    holdings: Sequence[Holding],
    housekeeping: CpuSet | None = None,
    own_pages: Mapping[tuple[int | None, int], int] | None = None,
    *,
    is_open: bool = False,
) -> Capacity:
    """See what ``holdings`` leave of a host.

    ``own_pages`` are the huge pages by node and size that the VM itself has mapped. Without
    ``housekeeping``, and with ``is_open``, a placement chooses more CPUs for the host.

    Raises ``PlanError`` for a host whose CPUs are not known.
    """
    online = host.online
    if not online:
        raise PlanError("host", "no online CPU", "a host, or a captured tree of one")
    held = union(holding.alone(host) for holding in holdings)
    if housekeeping is None:
        housekeeping = services_of(host) & online - held
        is_open = not housekeeping
        if is_open:
            housekeeping = union(holding.helpers for holding in holdings) & online - held
    elif not housekeeping <= online:
        expected = f"online CPUs, some of {online.brief()}"
        raise PlanError("housekeeping", housekeeping.brief(), expected)
    sizes = set(_core_sizes(host))
    numa_nodes = tuple(_numa_nodes(host, holdings, held, housekeeping, own_pages or {}))
    return Capacity(
        host=host,
        online=online,
        numa_nodes=numa_nodes,
        housekeeping=housekeeping,
        is_open=is_open,
        held=held,
        isolated=isolated_of(host) & online,
        threads=max(sizes),
        is_uniform=len(sizes) == 1,
        is_flat=_is_flat(numa_nodes),
        holdings=tuple(holdings),
        own_pages=own_pages or {},
    )


def _core_sizes(host: Host) -> Iterator[int]:
    left = host.online.mask
    while left:
        core = host.core_of((left & -left).bit_length() - 1)
        yield len(core)
        left &= ~core.mask


def _is_flat(numa_nodes: Sequence[NodeCapacity]) -> bool:
    if len(numa_nodes) < 2:
        return True
    near, far = numa_nodes[0].distances[:2]
    others = len(numa_nodes) - 1
    return near != far and all(
        node.distances[node.index] == near and node.distances.count(far) == others
        for node in numa_nodes
    )


def isolation_of(spec: VmSpec, capacity: Capacity) -> str:
    """Return what isolated CPUs are to a VM: ``sought``, ``spared``, or nothing where none are."""
    if not capacity.isolated:
        return ""
    return "sought" if spec.cpu.realtime else "spared"


def _numa_nodes(
    host: Host,
    holdings: Sequence[Holding],
    held: CpuSet,
    housekeeping: CpuSet,
    own_pages: Mapping[tuple[int | None, int], int],
) -> Iterable[NodeCapacity]:
    online = host.online
    pool = online - isolated_of(host) - held
    floating = [share for holding in holdings for share in holding.floating]
    memory: Counter[int] = Counter()
    for holding in holdings:
        memory.update(dict(holding.memory))
    promised = _promised(host, holdings)
    ranks = ranks_of(host)
    low_power = CpuSet(cpu for cpu, rank in ranks.items() if rank == LOW_POWER)
    masks = _Masks(
        free=(online - held - housekeeping).mask,
        kept=housekeeping.mask,
        held=held.mask,
        isolated=isolated_of(host).mask,
        ranks=ranks,
        sizes={
            cache.id: cache.size_kib or 0
            for cache in host.caches or ()
            if cache.level == 3 and cache.type != "Instruction"
        },
    )
    helpers = [helping for holding in holdings if (helping := holding.helpers & housekeeping)]
    nodes = host.nodes or ()
    seen: dict[Hashable, int] = {}
    if not nodes:
        known = host.memory or Memory()
        yield NodeCapacity(
            index=0,
            node=None,
            cpus=online,
            pool=(pool - low_power) or pool,
            load=_load(floating, online, online),
            kept=len(housekeeping),
            helpers=len(helpers),
            domains=(domains := _domains(host, online, masks, seen)),
            likeness=tuple(sorted(domain.likeness for domain in domains)),
            is_hybrid=bool(ranks),
            whole=sum(domain.whole for domain in domains),
            memory_kib=_room(known.total_kib, known.hugepages, sum(memory.values())),
            pages=_unpromised(known.hugepages, promised.get(None, {}), own_pages, None),
            allocatable_kib=_allocatable(known.total_kib, known.free_kib),
            distances=(10,),
        )
        return
    claimed = CpuSet()
    cpus_of = []
    for node in nodes:  # a CPU that two nodes claim is the first one's, and counted once
        cpus_of.append((node.cpus or CpuSet()) & online - claimed)
        claimed |= cpus_of[-1]
    unknown = None
    for index, node in enumerate(nodes):
        cpus = cpus_of[index]
        domains = _domains(host, cpus, masks, seen)
        if node.distances is None and unknown is None:
            unknown = _unknown_distances(host, cpus_of)
        yield NodeCapacity(
            index=index,
            node=node.id,
            cpus=cpus,
            pool=(pool & cpus - low_power) or pool & cpus,
            load=_load(floating, cpus, online),
            kept=len(housekeeping & cpus),
            helpers=sum(not helping.isdisjoint(cpus) for helping in helpers),
            domains=domains,
            likeness=tuple(sorted(domain.likeness for domain in domains)),
            is_hybrid=bool(ranks),
            whole=sum(domain.whole for domain in domains),
            memory_kib=_room(node.memory_kib, node.hugepages, memory[node.id]),
            pages=_unpromised(node.hugepages, promised.get(node.id, {}), own_pages, node.id),
            allocatable_kib=_allocatable(node.memory_kib, node.free_kib),
            distances=node.distances or (unknown or [])[index],
        )


def _unknown_distances(host: Host, cpus_of: Sequence[CpuSet]) -> list[tuple[int, ...]]:
    """Return the distances that the caches and packages suggest, where the firmware tells none."""
    known = {cpu.id: cpu for cpu in host.cpus or ()}
    caches = [{known[cpu].l3 for cpu in cpus} - {None} for cpus in cpus_of]
    packages = [{known[cpu].package for cpu in cpus} - {None} for cpus in cpus_of]
    return [
        tuple(
            10
            if place == other
            else SAME_L3
            if caches[place] & caches[other]
            else SAME_PACKAGE
            if packages[place] & packages[other]
            else REMOTE_DISTANCE
            for other in range(len(cpus_of))
        )
        for place in range(len(cpus_of))
    ]


class _Masks(NamedTuple):
    """Sets of CPUs of the whole host, as masks."""

    free: int
    kept: int
    held: int
    isolated: int
    ranks: Mapping[int, int]
    sizes: Mapping[int | None, int]
    """The size of each L3."""


def _domains(
    host: Host, cpus: CpuSet, masks: _Masks, likenesses: dict[Hashable, int]
) -> tuple[CacheDomain, ...]:
    """Return the cores of a node by L3 cache, in the order of their CPUs."""
    groups: defaultdict[int | None, list[tuple[int, int | None, int]]] = defaultdict(list)
    here, left = cpus.mask, cpus.mask
    while left:
        number = (left & -left).bit_length() - 1
        core = host.core_of(number).mask & here
        left &= ~core
        cpu = host.cpu(number)
        rank = 0
        if masks.ranks:
            rank = max(masks.ranks.get(each, 0) for each in CpuSet.from_mask(core))
        groups[cpu.l3].append((core, cpu.l2, rank))
    return tuple(_domain(cache, cores, masks, likenesses) for cache, cores in groups.items())


def _domain(
    cache: int | None,
    found: Sequence[tuple[int, int | None, int]],
    masks: _Masks,
    likenesses: dict[Hashable, int],
) -> CacheDomain:
    sharing: Counter[int | None] = Counter()
    for cpus, l2, _ in found:
        sharing[l2] |= cpus
    cores = []
    modules: defaultdict[int, list[Kind]] = defaultdict(list)
    for cpus, l2, rank in found:
        mates = 0 if l2 is None else sharing[l2] & ~cpus
        core = Core(
            cpus,
            cpus & masks.free,
            cpus & masks.isolated,
            mates,
            rank,
            cpus & masks.kept != 0,
            mates & (masks.kept | masks.held) != 0,
        )
        cores.append(core)
        modules[cpus | mates].append(kind_of(core))
    kinds = tuple(sorted(kind for module in modules.values() for kind in module))
    is_kept = any(core.is_beside_host for core in cores)
    size = masks.sizes.get(cache, 0)
    alike: Hashable = (is_kept, size, kinds)
    if len(modules) < len(cores):
        alike = (is_kept, size, tuple(sorted(tuple(sorted(module)) for module in modules.values())))
    return CacheDomain(
        cache,
        tuple(cores),
        sum(core.is_whole for core in cores),
        kinds,
        size,
        is_kept,
        likenesses.setdefault(alike, len(likenesses)),
    )


def kind_of(core: Core) -> Kind:
    """Return all of a core that counts when every CPU is as good as another."""
    return Kind(
        core.cpus.bit_count(),
        core.free.bit_count(),
        (core.free & core.isolated).bit_count(),
        core.isolated.bit_count(),
        core.rank,
        core.is_beside_host,
        core.is_unclean,
    )


def _load(floating: Iterable[tuple[CpuSet, int]], here: CpuSet, online: CpuSet) -> Fraction:
    """Return how many of the vCPUs that float are on a node, each spread over its CPUs."""
    return sum(
        (
            Fraction(count * len(cpus & here), len(cpus & online))
            for cpus, count in floating
            if cpus & online
        ),
        Fraction(0),
    )


def _room(total_kib: int | None, pools: Sequence[HugePages] | None, held_kib: int) -> int | None:
    if total_kib is None:
        return None
    pooled = sum((pool.total or 0) * pool.size_kib for pool in pools or ())
    return max(total_kib - pooled - held_kib, 0)


def _allocatable(total_kib: int | None, free_kib: int | None) -> int:
    return max((free_kib or 0) - (total_kib or 0) // KEPT_FREE, 0)


def _promised(host: Host, holdings: Sequence[Holding]) -> dict[int | None, dict[int, int]]:
    """Return per node and page size the free pages that are promised; None: no nodes."""
    asked: Counter[tuple[int, int]] = Counter()
    for holding in holdings:
        for node, size, count in holding.hugepages:
            asked[node, size] += count
    promised: dict[int | None, dict[int, int]] = defaultdict(dict)
    if not host.nodes:
        for (_, size), count in asked.items():
            promised[None][size] = promised[None].get(size, 0) + count
        return promised
    for (node, size), count in asked.items():
        if node != ANY_NODE:
            promised[node][size] = count
    for (node, size), count in asked.items():
        left = count if node == ANY_NODE else 0
        for each in host.nodes:
            free = {pool.size_kib: pool.free or 0 for pool in each.hugepages or ()}.get(size, 0)
            there = promised[each.id].get(size, 0)
            taken = min(max(free - there, 0), left)
            promised[each.id][size] = there + taken
            left -= taken
    return promised


def _unpromised(
    pools: Sequence[HugePages] | None,
    promised: Mapping[int, int],
    own: Mapping[tuple[int | None, int], int],
    node: int | None,
) -> dict[int, int]:
    return {
        pool.size_kib: max((pool.free or 0) - promised.get(pool.size_kib, 0), 0)
        + own.get((node, pool.size_kib), 0)
        for pool in pools or ()
    }
