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
from kvmhooks.values import CpuSet, union

if TYPE_CHECKING:
    from kvmhooks.inventory.usage import Holding

REMOTE_DISTANCE: Final = 20
"""The kernel's own for nodes of which the firmware tells none (include/linux/topology.h)."""

KEPT_FREE: Final = 20
"""One part in so many of a node's memory is not made into huge pages."""


class Core(NamedTuple):
    """One core; sets of CPUs are masks here."""

    cpus: int
    free: int
    is_beside_host: bool
    """One of its CPUs is housekeeping."""
    is_slow: bool
    """One of its CPUs is of the efficiency kind."""

    @property
    def is_whole(self) -> bool:
        """All of it is free."""
        return self.cpus == self.free


class Kind(NamedTuple):
    """All of a core that counts when every CPU is as good as another."""

    size: int
    free: int
    is_beside_host: bool
    is_slow: bool


class CacheDomain(NamedTuple):
    """The cores of one node that share an L3 cache."""

    cache: int | None
    cores: tuple[Core, ...]
    whole: int
    """The number of its cores that are whole."""
    kinds: tuple[Kind, ...]
    """Those of its cores, sorted."""
    likeness: int
    """The same for all whose cores are of the same kinds."""


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
    domains: tuple[CacheDomain, ...]
    likeness: tuple[int, ...]
    """Those of its L3 caches, sorted: nodes with the same ones are alike."""
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
    held: CpuSet
    """CPUs that other VMs have to themselves."""
    isolated: CpuSet
    """Online CPUs that the kernel does not balance."""
    threads: int
    """The threads of the largest core."""
    is_uniform: bool
    """All cores have as many threads."""
    is_flat: bool
    """Each node is as far from any other, there and back."""
    holdings: tuple[Holding, ...]
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


def measure(
    host: Host,
    holdings: Sequence[Holding],
    housekeeping: CpuSet | None = None,
    own_pages: Mapping[tuple[int | None, int], int] | None = None,
) -> Capacity:
    """See what ``holdings`` leave of a host.

    ``own_pages`` are the huge pages by node and size that the VM itself has mapped.

    Raises ``PlanError`` for a host whose CPUs are not known.
    """
    online = host.online
    if not online:
        raise PlanError("host", "no online CPU", "a host, or a captured tree of one")
    held = union(holding.alone(host) for holding in holdings)
    if housekeeping is None:
        housekeeping = choose_housekeeping(host, held)
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
        held=held,
        isolated=_isolated(host) & online,
        threads=max(sizes),
        is_uniform=len(sizes) == 1,
        is_flat=_is_flat(numa_nodes),
        holdings=tuple(holdings),
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


def choose_housekeeping(host: Host, taken: CpuSet) -> CpuSet:
    """Return a whole core of each package that has more than one: the host's own.

    It is the first one that is not all of its node. CPUs that the kernel does not balance
    (``isolcpus``) are never chosen, nor those that a VM holds, also where their siblings are. One
    core at least is the host's, unless it is the only one: then one of its threads, if it has
    more, or all that there is.
    """
    online = host.online
    usable = online - _isolated(host) - taken
    packages: defaultdict[int, int] = defaultdict(int)
    nodes: defaultdict[int | None, int] = defaultdict(int)
    for cpu in host.cpus or ():
        if cpu.online:
            packages[-1 if cpu.package is None else cpu.package] |= 1 << cpu.id
            nodes[cpu.node] |= 1 << cpu.id
    chosen = CpuSet()
    for _, mask in sorted(packages.items()):
        cpus = CpuSet.from_mask(mask)
        if host.core_of(cpus.first()) >= cpus:
            continue
        for cpu_id in cpus & usable:
            core = host.core_of(cpu_id)
            if core.mask != nodes[host.cpu(cpu_id).node]:
                chosen |= core & usable
                break
    if chosen or not usable:
        return chosen
    core = host.core_of(usable.first())
    first = CpuSet((usable.first(),))
    return core & usable if online - core else first


def _numa_nodes(
    host: Host,
    holdings: Sequence[Holding],
    held: CpuSet,
    housekeeping: CpuSet,
    own_pages: Mapping[tuple[int | None, int], int],
) -> Iterable[NodeCapacity]:
    online = host.online
    pool = online - _isolated(host) - held
    floating = [share for holding in holdings for share in holding.floating]
    memory: Counter[int] = Counter()
    for holding in holdings:
        memory.update(dict(holding.memory))
    promised = _promised(host, holdings)
    efficiency = CpuSet(cpu.id for cpu in host.cpus or () if cpu.kind == "efficiency")
    free = online - held - housekeeping
    nodes = host.nodes or ()
    seen: dict[tuple[Kind, ...], int] = {}
    if not nodes:
        known = host.memory or Memory()
        yield NodeCapacity(
            index=0,
            node=None,
            cpus=online,
            pool=pool,
            load=_load(floating, online, online),
            domains=(domains := _domains(host, online, free, housekeeping, efficiency, seen)),
            likeness=tuple(sorted(domain.likeness for domain in domains)),
            whole=sum(domain.whole for domain in domains),
            memory_kib=_room(known.total_kib, known.hugepages, sum(memory.values())),
            pages=_unpromised(known.hugepages, promised.get(None, {}), own_pages, None),
            allocatable_kib=_allocatable(known.total_kib, known.free_kib),
            distances=(10,),
        )
        return
    for index, node in enumerate(nodes):
        cpus = (node.cpus or CpuSet()) & online
        domains = _domains(host, cpus, free, housekeeping, efficiency, seen)
        yield NodeCapacity(
            index=index,
            node=node.id,
            cpus=cpus,
            pool=pool & cpus,
            load=_load(floating, cpus, online),
            domains=domains,
            likeness=tuple(sorted(domain.likeness for domain in domains)),
            whole=sum(domain.whole for domain in domains),
            memory_kib=_room(node.memory_kib, node.hugepages, memory[node.id]),
            pages=_unpromised(node.hugepages, promised.get(node.id, {}), own_pages, node.id),
            allocatable_kib=_allocatable(node.memory_kib, node.free_kib),
            distances=node.distances or _unknown_distances(index, len(nodes)),
        )


def _unknown_distances(index: int, count: int) -> tuple[int, ...]:
    return tuple(10 if other == index else REMOTE_DISTANCE for other in range(count))


def _domains(
    host: Host,
    cpus: CpuSet,
    free: CpuSet,
    housekeeping: CpuSet,
    efficiency: CpuSet,
    likenesses: dict[tuple[Kind, ...], int],
) -> tuple[CacheDomain, ...]:
    """Return the cores of a node by L3 cache, in the order of their CPUs."""
    groups: defaultdict[int | None, list[Core]] = defaultdict(list)
    here, own, slow, left = cpus.mask, housekeeping.mask, efficiency.mask, cpus.mask
    while left:
        number = (left & -left).bit_length() - 1
        core = host.core_of(number).mask & here
        left &= ~core
        groups[host.cpu(number).l3].append(
            Core(core, core & free.mask, core & own != 0, core & slow != 0)
        )
    return tuple(_domain(cache, tuple(cores), likenesses) for cache, cores in groups.items())


def _domain(
    cache: int | None, cores: tuple[Core, ...], likenesses: dict[tuple[Kind, ...], int]
) -> CacheDomain:
    kinds = tuple(
        sorted(
            Kind(core.cpus.bit_count(), core.free.bit_count(), core.is_beside_host, core.is_slow)
            for core in cores
        )
    )
    whole = sum(core.cpus == core.free for core in cores)
    return CacheDomain(cache, cores, whole, kinds, likenesses.setdefault(kinds, len(likenesses)))


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


def _isolated(host: Host) -> CpuSet:
    isolated = host.kernel.isolated if host.kernel else None
    return isolated or CpuSet()
