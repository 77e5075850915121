"""Hosts as values, of any shape: no tree is written, so thousands of them cost nothing.

The shape is drawn first (cores with their places), then the numbers that the kernel gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve, frozen
from hypothesis import strategies as st

from kvmhooks.host.bus.devices import PciDevice
from kvmhooks.host.model import Cache, Cpu, Host, HugePages, Kind, Memory, Node
from kvmhooks.host.system.system import Kernel, Kvm
from kvmhooks.values import CpuSet, PciAddress

MIB = 1024
GIB = 1 << 20


@frozen
class Core:
    """One core of a host and where it is; the threads are numbered over the whole host."""

    package: int
    node: int
    l3: int
    threads: tuple[int, ...]
    kind: Kind | None = None
    module: int | None = None
    """Cores of one module share an L2; None: it has its own."""
    has_l3: bool = True
    """It is no low-power core."""


@frozen(kw_only=True)
class NodeShape:
    """One node: its memory, and the huge pages of each size (total, free)."""

    memory_kib: int
    free_kib: int
    pages: Mapping[int, tuple[int, int]]


@frozen(kw_only=True)
class Shape:
    """A host before the kernel's words for it."""

    cores: tuple[Core, ...]
    nodes: tuple[NodeShape, ...]
    """Those without a core have memory only."""
    node_ids: tuple[int, ...]
    distances: tuple[tuple[int, ...], ...] | None
    has_numa: bool = True
    has_l3: bool = True
    offline: CpuSet = CpuSet()
    isolated: CpuSet = CpuSet()
    nohz_full: CpuSet = CpuSet()
    devices: tuple[int | None, ...] = ()
    """The node (by place) of each PCI device, 0000:00:01.0 and on."""


def host_of(shape: Shape) -> Host:
    """The host as ``kvmhooks.host.read`` would give it."""
    cpus, caches = _cpus(shape), _caches(shape)
    return Host(
        cpus=cpus,
        caches=caches,
        nodes=_nodes(shape) if shape.has_numa else None,
        memory=_memory(shape),
        pci=tuple(
            PciDevice(
                address=address(at),
                class_="0x020000",
                node=None if node is None or not shape.has_numa else shape.node_ids[node],
                iommu_group=at,
            )
            for at, node in enumerate(shape.devices)
        ),
        kernel=Kernel(isolated=shape.isolated, nohz_full=shape.nohz_full),
        kvm=Kvm(available=True, vendor="intel", present=True),
    )


def address(at: int) -> PciAddress:
    """The address of a host's device ``at``."""
    return PciAddress(0, 1, at, 0)


def _online(shape: Shape, core: Core) -> CpuSet:
    return CpuSet(core.threads) - shape.offline


def _l3_id(shape: Shape, number: int) -> int | None:
    return number if shape.has_l3 else None


def _cpus(shape: Shape) -> tuple[Cpu, ...]:
    made = []
    for at, core in enumerate(shape.cores):
        for thread in core.threads:
            if thread in shape.offline:
                made.append(Cpu(thread, online=False))
                continue
            made.append(
                Cpu(
                    thread,
                    online=True,
                    package=core.package,
                    die=0,
                    core=at,
                    siblings=_online(shape, core),
                    l2=_l2_id(at, core),
                    l3=_l3_id(shape, core.l3) if core.has_l3 else None,
                    node=shape.node_ids[core.node] if shape.has_numa else None,
                    kind=core.kind,
                    isolated=thread in shape.isolated,
                    nohz_full=thread in shape.nohz_full,
                )
            )
    return tuple(sorted(made, key=lambda cpu: cpu.id))


def _caches(shape: Shape) -> tuple[Cache, ...]:
    l2s: dict[int, CpuSet] = {}
    l3s: dict[int, CpuSet] = {}
    for at, core in enumerate(shape.cores):
        online = _online(shape, core)
        if online:
            l2 = _l2_id(at, core)
            l2s[l2] = l2s.get(l2, CpuSet()) | online
            if core.has_l3:
                l3s[core.l3] = l3s.get(core.l3, CpuSet()) | online
    made = [Cache(2, "Unified", number, 1024, cpus) for number, cpus in l2s.items()]
    if shape.has_l3:
        made += [Cache(3, "Unified", number, 16_384, cpus) for number, cpus in l3s.items()]
    return tuple(made)


def _l2_id(at: int, core: Core) -> int:
    return 1000 + at if core.module is None else core.module


def _nodes(shape: Shape) -> tuple[Node, ...]:
    made = []
    order = sorted(range(len(shape.nodes)), key=shape.node_ids.__getitem__)
    for at in order:
        node = shape.nodes[at]
        cpus = CpuSet(cpu for core in shape.cores if core.node == at for cpu in core.threads)
        made.append(
            Node(
                id=shape.node_ids[at],
                cpus=cpus - shape.offline,
                memory_kib=node.memory_kib,
                free_kib=node.free_kib,
                distances=None
                if shape.distances is None
                else tuple(shape.distances[at][other] for other in order),
                hugepages=_pools(node),
            )
        )
    return tuple(made)


def _pools(node: NodeShape) -> tuple[HugePages, ...]:
    return tuple(
        HugePages(size, total=total, free=free, surplus=0)
        for size, (total, free) in sorted(node.pages.items())
    )


def _memory(shape: Shape) -> Memory:
    sizes = sorted({size for node in shape.nodes for size in node.pages})
    return Memory(
        total_kib=sum(node.memory_kib for node in shape.nodes),
        free_kib=sum(node.free_kib for node in shape.nodes),
        available_kib=sum(node.free_kib for node in shape.nodes),
        hugepages=tuple(
            HugePages(
                size,
                total=sum(node.pages.get(size, (0, 0))[0] for node in shape.nodes),
                free=sum(node.pages.get(size, (0, 0))[1] for node in shape.nodes),
                surplus=0,
            )
            for size in sizes
        ),
    )


@st.composite
def shapes(draw: st.DrawFn, *, most: int = 16, nodes: int = 4) -> Shape:
    """Any host of at most ``most`` CPUs on at most ``nodes`` nodes with CPUs."""
    count = draw(st.integers(1, nodes))
    threads = draw(st.sampled_from([1, 2, 2, 2]))
    mixed = draw(st.booleans()) and threads == 2 and draw(st.booleans())
    is_hybrid = mixed and draw(st.booleans())
    widths: list[tuple[int, int, int]] = []
    """(node, L3, threads) of each core."""
    l3 = 0
    for node in range(count):
        for _ in range(draw(st.integers(1, 3 if count == 1 else 2))):
            for _ in range(draw(st.integers(1, max(1, most // (threads * count))))):
                wide = draw(st.sampled_from([1, 2])) if mixed else threads
                if sum(each[2] for each in widths) + wide <= most:
                    widths.append((node, l3, wide))
            l3 += 1
    present = sorted({node for node, _, _ in widths})
    per_package = draw(st.sampled_from([1, 1, 2, len(present)]))
    numbers = _numbering(draw, [wide for _, _, wide in widths])
    in_module = draw(st.sampled_from([1, 1, 2, 4]))
    has_low_power = is_hybrid and draw(st.booleans())
    cores = tuple(
        Core(
            package=present.index(node) // per_package,
            node=present.index(node),
            l3=l3,
            threads=threads,
            kind=("performance" if wide == 2 else "efficiency") if is_hybrid else None,
            module=at // in_module * 100 + l3 if wide == 1 and in_module > 1 else None,
            has_l3=not (has_low_power and wide == 1 and at % 3 == 0),
        )
        for at, ((node, l3, wide), threads) in enumerate(zip(widths, numbers, strict=True))
    )
    return _with_the_rest(draw, cores)


def _with_the_rest(draw: st.DrawFn, cores: tuple[Core, ...]) -> Shape:
    count = 1 + max(core.node for core in cores)
    only_memory = draw(st.sampled_from([0, 0, 0, 1]))
    total = count + only_memory
    everything = CpuSet(cpu for core in cores for cpu in core.threads)
    rare = st.frozensets(st.sampled_from(sorted(everything)), max_size=2).map(CpuSet)
    offline = draw(rare) if draw(st.integers(0, 3)) == 0 else CpuSet()
    if offline == everything:
        offline = CpuSet()
    isolated = draw(rare) - offline if draw(st.integers(0, 3)) == 0 else CpuSet()
    gaps = draw(st.sampled_from([0, 0, 1]))
    places = st.integers(0, total - 1)
    return Shape(
        cores=cores,
        nodes=tuple(_node(draw) for _ in range(total)),
        node_ids=tuple(range(gaps, gaps + total * (1 + gaps), 1 + gaps)),
        distances=_distances(draw, total) if draw(st.integers(0, 5)) else None,
        has_numa=total > 1 or draw(st.integers(0, 3)) > 0,
        has_l3=draw(st.integers(0, 4)) > 0,
        offline=offline,
        isolated=isolated,
        nohz_full=draw(rare) - offline if draw(st.integers(0, 7)) == 0 else CpuSet(),
        devices=tuple(draw(st.lists(places | st.none(), max_size=3))),
    )


def _numbering(draw: st.DrawFn, widths: Sequence[int]) -> list[tuple[int, ...]]:
    """The kernel's numbers: siblings adjacent, or all first threads before all second ones."""
    if draw(st.booleans()):
        starts = [sum(widths[:at]) for at in range(len(widths))]
        return [
            tuple(range(start, start + wide)) for start, wide in zip(starts, widths, strict=True)
        ]
    seconds = iter(range(len(widths), sum(widths)))
    return [(at,) if wide == 1 else (at, next(seconds)) for at, wide in enumerate(widths)]


def _node(draw: st.DrawFn) -> NodeShape:
    memory = draw(st.sampled_from([1, 2, 4, 8])) * GIB
    pages = draw(st.sampled_from([0, 100, 300, 512]))
    free = draw(st.sampled_from([pages, pages, pages // 2, 0]))
    large = draw(st.sampled_from([0, 1, 2, 3]))
    used = pages * 2 * MIB
    rest = max(memory - used - large * GIB, 0)
    return NodeShape(
        memory_kib=memory + used + large * GIB,
        free_kib=draw(st.sampled_from([rest, rest, rest // 2, rest // 16])),
        pages={2048: (pages, free), GIB: (large, large)},
    )


def _distances(draw: st.DrawFn, count: int) -> tuple[tuple[int, ...], ...]:
    """Between nodes: all alike, or any, but the same there and back."""
    alike = draw(st.booleans())
    found = [[10] * count for _ in range(count)]
    for row in range(count):
        for other in range(row):
            distance = 20 if alike else draw(st.sampled_from([11, 16, 21, 32]))
            found[row][other] = found[other][row] = distance
    return tuple(map(tuple, found))


small_hosts = shapes().map(host_of)
"""At most 16 CPUs on at most 4 nodes with CPUs."""

medium_hosts = shapes(most=64, nodes=8).map(host_of)
"""At most 64 CPUs on at most 8 nodes with CPUs."""


def renumbered(host: Host, cpus: Mapping[int, int], nodes: Mapping[int, int]) -> Host:
    """The same machine after the kernel numbered its CPUs and nodes otherwise."""

    def moved(these: CpuSet | None) -> CpuSet | None:
        return None if these is None else CpuSet(cpus[cpu] for cpu in these)

    def node_of(number: int | None) -> int | None:
        return None if number is None else nodes[number]

    old = [node.id for node in host.nodes or ()]
    order = sorted(old, key=nodes.__getitem__)
    by_id = {node.id: node for node in host.nodes or ()}
    return Host(
        cpus=tuple(
            sorted(
                (
                    evolve(
                        cpu,
                        id=cpus[cpu.id],
                        siblings=moved(cpu.siblings),
                        node=node_of(cpu.node),
                    )
                    for cpu in host.cpus or ()
                ),
                key=lambda cpu: cpu.id,
            )
        ),
        caches=tuple(
            evolve(cache, cpus=moved(cache.cpus) or CpuSet()) for cache in host.caches or ()
        ),
        nodes=None
        if host.nodes is None
        else tuple(
            evolve(
                by_id[number],
                id=nodes[number],
                cpus=moved(by_id[number].cpus),
                distances=_reordered(by_id[number].distances, [old.index(at) for at in order]),
            )
            for number in order
        ),
        memory=host.memory,
        pci=tuple(evolve(device, node=node_of(device.node)) for device in host.pci or ()),
        kernel=None
        if host.kernel is None
        else evolve(
            host.kernel,
            isolated=moved(host.kernel.isolated),
            nohz_full=moved(host.kernel.nohz_full),
        ),
        kvm=host.kvm,
    )


def _reordered(distances: tuple[int, ...] | None, order: list[int]) -> tuple[int, ...] | None:
    return None if distances is None else tuple(distances[at] for at in order)
