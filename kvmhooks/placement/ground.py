"""What a host has to give: its nodes with the CPUs and memory that nobody has claimed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host, HugePages, Memory
from kvmhooks.isolate.claim import Claim
from kvmhooks.values import CpuSet, union


@frozen(eq=False)
class Field:
    """What one node has to give; on a kernel without NUMA the whole host is one, of no number."""

    node: int | None
    near: CpuSet
    """All its online CPUs."""
    pool: CpuSet
    """CPUs over which shared vCPUs may float: online, balanced by the kernel, nobody's own."""
    cores: tuple[tuple[CpuSet, ...], ...]
    """Whole cores for dedicated vCPUs, those that share an L3 cache together."""
    memory_kib: int | None
    pages: Mapping[int, int]
    """Free huge pages: page size in KiB to count."""

    def cores_of(self, threads: int) -> int:
        """How many of its cores have at least so many threads."""
        return sum(len(core) >= threads for group in self.cores for core in group)

    def __str__(self) -> str:
        return "the host" if self.node is None else f"node {self.node}"


@frozen
class Ground:
    """What a host has to give, node by node."""

    fields: tuple[Field, ...]
    housekeeping: CpuSet
    taken: CpuSet
    """CPUs that other claims hold exclusively."""
    threads: int
    """The threads of most free cores."""


def survey(host: Host, claims: Sequence[Claim]) -> Ground:
    """See what ``claims`` leave of a host.

    Raises ``PlanError`` for a host whose CPUs are not known.
    """
    if not host.online:
        raise PlanError("host", "no online CPU", "a host, or a captured tree of one")
    taken = union(claim.exclusive for claim in claims)
    housekeeping = choose_housekeeping(host, taken)
    fields = tuple(_fields(host, taken=taken, housekeeping=housekeeping))
    sizes = Counter(len(core) for field in fields for group in field.cores for core in group)
    threads = max(sizes, key=lambda size: (sizes[size], size), default=1)
    return Ground(fields, housekeeping, taken, threads)


def choose_housekeeping(host: Host, taken: CpuSet) -> CpuSet:
    """The first whole core of each package that has more than one: the host's own.

    CPUs that the kernel does not balance (``isolcpus``) are never chosen, nor those that a claim
    holds, also where their siblings are. One core at least is the host's, however small it is,
    unless there are no other CPUs at all.
    """
    usable = host.online - _isolated(host) - taken
    chosen = CpuSet()
    for package in sorted({_package(host, cpu) for cpu in usable}):
        cpus = CpuSet(cpu for cpu in host.online if _package(host, cpu) == package)
        core = host.core_of((usable & cpus).first())
        if core != cpus:
            chosen |= core & usable
    return chosen or (host.core_of(usable.first()) & usable if usable else chosen)


def _fields(host: Host, *, taken: CpuSet, housekeeping: CpuSet) -> Iterator[Field]:
    def field(
        number: int | None, cpus: CpuSet, memory_kib: int | None, pools: Sequence[HugePages] | None
    ) -> Field:
        free = (cpus & host.online) - taken
        return Field(
            node=number,
            near=cpus & host.online,
            pool=free - _isolated(host),
            cores=tuple(_whole_cores(host, free - housekeeping)),
            memory_kib=memory_kib,
            pages={pool.size_kib: pool.free or 0 for pool in pools or ()},
        )

    nodes = [node for node in host.nodes or () if node.cpus]
    for node in nodes:
        yield field(node.id, node.cpus or CpuSet(), node.memory_kib, node.hugepages)
    if not nodes:
        memory = host.memory or Memory()
        yield field(None, host.online, memory.total_kib, memory.hugepages)


def _whole_cores(host: Host, free: CpuSet) -> Iterator[tuple[CpuSet, ...]]:
    """The cores that are free with all their threads, a group for each L3 cache."""
    groups: defaultdict[int | None, set[CpuSet]] = defaultdict(set)
    for cpu in free:
        core = host.core_of(cpu)
        if core <= free:
            groups[host.cpu(cpu).l3].add(core)
    ordered = [sorted(group, key=CpuSet.first) for group in groups.values()]
    yield from (tuple(group) for group in sorted(ordered, key=lambda group: group[0].first()))


def _isolated(host: Host) -> CpuSet:
    isolated = host.kernel.isolated if host.kernel else None
    return isolated or CpuSet()


def _package(host: Host, cpu: int) -> int:
    package = host.cpu(cpu).package
    return -1 if package is None else package
