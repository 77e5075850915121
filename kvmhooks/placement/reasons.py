"""The reasons for a VM's place: a sentence for each decision, and one for each thing to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from kvmhooks.placement.model import Cell, PciPlace
from kvmhooks.placement.pins import Pins
from kvmhooks.placement.request import are_threads_told
from kvmhooks.placement.search.capacity import Capacity
from kvmhooks.placement.search.choose import Choice
from kvmhooks.placement.search.host_cpus import ranks_of
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.tuning import Threads
from kvmhooks.values import ByteSize, CpuSet, union
from kvmhooks.wording import counted


@frozen(kw_only=True)
class Settled:
    """Everything that was decided."""

    spec: VmSpec
    capacity: Capacity
    choice: Choice
    pins: Pins
    cells: tuple[Cell, ...]
    others: CpuSet
    """The CPUs of QEMU's other threads."""
    score: Mapping[str, int]
    devices: tuple[PciPlace, ...]

    @property
    def own(self) -> CpuSet:
        """The CPUs of the dedicated vCPUs."""
        return union(self.pins.vcpus[vcpu] for vcpu in self.choice.request.dedicated)

    @property
    def nodes(self) -> str:
        """The nodes, in words."""
        return named(sorted({cell.node for cell in self.cells if cell.node is not None}))


def named(nodes: Sequence[int]) -> str:
    """Write ``node 0``, ``nodes 0 and 1``, or ``the host`` for none."""
    if not nodes:
        return "the host"
    if len(nodes) == 1:
        return f"node {nodes[0]}"
    return f"nodes {', '.join(map(str, nodes[:-1]))} and {nodes[-1]}"


def reasons(settled: Settled) -> Iterator[str]:
    """Say why, the most important first."""
    if settled.choice.request.dedicated:
        yield from _why_dedicated(settled)
    yield from _why_floating(settled)
    if settled.choice.request.dedicated:
        yield f"kept for the host: CPUs {settled.capacity.housekeeping}"
        yield f"QEMU's other threads: CPUs {settled.others}"
    yield from _why_memory(settled)
    yield from _why_devices(settled)


def _why_dedicated(settled: Settled) -> Iterator[str]:
    score, request = settled.score, settled.choice.request
    count = len(request.dedicated)
    nodes = score["nodes"]
    enough = "one node is enough"
    if nodes > 1:
        enough = f"no fewer than {nodes} nodes fit"
        if request.spec.memory.cell or request.spec.memory.cells:
            enough = "a node for each cell, the nearest to each other"
    if score["cohabiting"]:
        enough = f"{counted(score['cohabiting'], 'cell')} must share a node with another"
    whole = "core" if score["company"] else "whole core"
    yield (
        f"{counted(count, 'vCPU')} on {counted(score['cores'], whole)} of {settled.nodes}: {enough}"
    )
    if any(cache is not None for cache, _, _ in settled.pins.caches):
        yield f"{counted(score['l3'], 'L3 cache')}: no fewer would do"
    yield from _why_shared(settled)
    if score["company"]:
        crowd = counted(score["company"], "guest core")
        yield f"{crowd} with company on its core: cpu.smt is share, and no better place is free"
    if request.threads > 1:
        yield f"{request.threads} guest threads in a core, as siblings of the host"
    if settled.pins.idle:
        yield f"cpu.smt is isolate: CPUs {settled.pins.idle} stay idle"
    if request.spec.cpu.kind is not None:
        yield f"{request.spec.cpu.kind} cores only"


def _why_shared(settled: Settled) -> Iterator[str]:
    """Tell of caches that the VM shares with the host, or with others."""
    score = settled.score
    if score["shared_l3"]:
        yield (
            f"{counted(score['shared_l3'], 'L3 cache')} shared with the host and QEMU's other "
            f"threads, CPUs {settled.capacity.housekeeping}: isolation.cache_ways divides it where "
            "the hardware can"
        )
    if score["shared_l2"]:
        crowd = counted(score["shared_l2"], "guest core")
        yield f"{crowd} with an L2 cache shared with the host or another VM: no other is free"


def _why_floating(settled: Settled) -> Iterator[str]:
    request = settled.choice.request
    floating = [vcpu for vcpu in range(request.spec.cpu.vcpus) if vcpu not in request.dedicated]
    if not floating:
        return
    pool = union(settled.pins.vcpus[vcpu] for vcpu in floating)
    count = counted(len(floating), "vCPU")
    verb = "floats" if len(floating) == 1 else "float"
    yield f"{count} {verb} over CPUs {pool}, shared with whatever else runs there"
    if not request.dedicated and settled.score["nodes"] > 1:
        yield f"{settled.nodes}: no node has the CPUs and the memory for all"


def _why_memory(settled: Settled) -> Iterator[str]:
    if settled.cells[0].node is None:
        return
    page = settled.cells[0]
    kind = f"{ByteSize.kib(page.page_kib)} pages" if page.is_huge else "ordinary pages"
    places = ", ".join(f"cell {cell.id} from node {cell.node}" for cell in settled.cells)
    yield f"memory in {kind}, {places}"


def _why_devices(settled: Settled) -> Iterator[str]:
    for place in settled.devices:
        if place.cell is not None:
            yield f"{place.address} is on node {place.node}, with cell {place.cell}"


def warnings(settled: Settled) -> Iterator[str]:
    """Say what the person might not expect."""
    score, spec, capacity = settled.score, settled.spec, settled.capacity
    own = settled.choice.request.dedicated
    floating = [vcpu for vcpu in range(spec.cpu.vcpus) if vcpu not in own]
    pool = union(settled.pins.vcpus[vcpu] for vcpu in floating)
    if score["crowding"] > 1:
        yield f"{len(floating)} vCPUs share {len(pool)} CPUs: they wait for each other"
    yield from _kinds(settled)
    yield from _isolation(settled)
    if score["beside_host"]:
        yield (
            f"the host is too small to keep QEMU's other threads, CPUs {settled.others}, off the "
            "cores of the vCPUs"
        )
    if own and not any(settled.others & node.cpus for node in settled.choice.assignment.numa_nodes):
        yield (
            f"no CPU on {settled.nodes} is left for QEMU's other threads: they are on the nearest, "
            f"CPUs {settled.others}; fewer vCPUs, or memory.cells, leave some"
        )
    if score["nodes"] > 1 and any(node.distances is None for node in capacity.host.nodes or ()):
        yield (
            "the firmware tells no distances between nodes: those that share an L3 cache, then "
            "those of a package, are taken for near"
        )
    yield from _odd_count(settled)
    if spec.cpu.kind is not None and not any(cpu.kind for cpu in capacity.host.cpus or ()):
        yield f'cpu.kind = "{spec.cpu.kind}": the cores of this host are all of one kind'
    missing = sum(cell.allocate for cell in settled.cells)
    if missing:
        size = ByteSize.kib(settled.cells[0].page_kib)
        yield f"{counted(missing, 'huge page')} of {size} must be allocated before the VM starts"
    yield from _remote_devices(settled)
    for name, by in settled.choice.gap:
        yield (
            f"not proven to be the best: not everything was tried; score.{name} could be lower by "
            f"{by} at most"
        )


def without_effect(spec: VmSpec, *, iothreads: bool, caches: bool) -> Iterator[str]:
    """Tell of keys that this place leaves without what they are for."""
    if spec.tuning.iothreads != Threads() and not iothreads:
        yield "tuning.iothreads is left out: the VM has no iothreads"
    if spec.isolation.memory_bandwidth is not None and not caches:
        yield "isolation.memory_bandwidth is left out: no L3 cache is its dedicated vCPUs' alone"


def _isolation(settled: Settled) -> Iterator[str]:
    """Tell of isolated CPUs that a real-time VM has not, or another has."""
    score, isolated = settled.score, settled.capacity.isolated
    if score["unisolated"]:
        yield (
            "cpu.realtime: some vCPUs are on CPUs that the kernel does not isolate: of its isolated"
            f" CPUs, {isolated}, not enough are free on {settled.nodes}; isolcpus= and nohz_full= "
            "name others"
        )
    elif settled.spec.cpu.realtime and not isolated:
        yield "cpu.realtime: the kernel of this host isolates no CPUs (isolcpus)"
    if score["on_isolated"]:
        yield (
            f"vCPUs are on isolated CPUs, {settled.own & isolated}, which real-time VMs will want: "
            "no others are free"
        )


def _kinds(settled: Settled) -> Iterator[str]:
    """Tell of vCPUs on cores of several kinds, and on low-power ones."""
    ranks = ranks_of(settled.capacity.host)
    on = {
        kind: CpuSet(cpu for cpu in settled.own if ranks.get(cpu) == rank)
        for rank, kind in enumerate(("performance", "efficiency", "low-power"))
    }
    if settled.score["kinds"]:
        listed = ", ".join(f"{kind} CPUs {cpus}" for kind, cpus in on.items() if cpus)
        yield (
            f"the vCPUs are on kinds of cores that differ, which the guest cannot see: {listed}; "
            "fewer vCPUs, or cpu.kind, keep them on one"
        )
    elif settled.score["low_power"]:
        cpus = on["low-power"]
        yield f"vCPUs on low-power cores, CPUs {cpus}, without an L3 cache: no others are free"


def _odd_count(settled: Settled) -> Iterator[str]:
    """Tell of vCPUs that do not come in whole cores, and of siblings that the guest cannot see."""
    cpu, threads = settled.spec.cpu, settled.capacity.threads
    if settled.choice.request.threads != 1:
        return
    if are_threads_told(settled.spec):
        count = len(settled.own)
        if settled.score["cores"] < count:
            yield (
                "cpu.threads: the guest sees each vCPU as a core, though some are siblings; "
                f"without it, or with {threads}, it sees that"
            )
    elif cpu.smt == "share" and len(settled.choice.request.dedicated) % threads:
        less = cpu.vcpus // threads * threads
        better = f"{less} or {less + threads}" if less else str(threads)
        yield (
            f"cpu.vcpus: {cpu.vcpus} make no whole cores of {threads} threads: each has a core, "
            f"the rest of which others may get; {better} would have all of theirs"
        )


def _remote_devices(settled: Settled) -> Iterator[str]:
    for index, (asked, place) in enumerate(zip(settled.spec.pci, settled.devices, strict=True)):
        if asked.locality == "preferred" and place.node is not None and place.cell is None:
            yield (
                f"pci[{index}]: {place.address} is on node {place.node}, the VM on {settled.nodes}"
            )
