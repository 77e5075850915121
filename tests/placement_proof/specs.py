"""Descriptions of VMs that say what decides where they go, and what other VMs hold of a host."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from kvmhooks.host.model import Host
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.spec import VmSpec
from kvmhooks.spec.structure import structure
from kvmhooks.values import CpuSet

PLACEMENTS = ("dedicated", "dedicated", "dedicated", "dedicated", "shared", "mixed")
_FEW = 4


def vm(document: dict[str, Any]) -> VmSpec:
    """A VM, named ``vm`` unless it says otherwise."""
    return structure({"name": "vm", **document}, Path("/vms"))


@st.composite
def documents(
    draw: st.DrawFn, host: Host, *, placements: tuple[str, ...] = PLACEMENTS, most: int = 8
) -> dict[str, Any]:
    """A right ``vm.toml`` of at most so many vCPUs that may fit the host, or not by little."""
    cpu = draw(_cpu(host, draw(st.sampled_from(placements)), most))
    memory = draw(_memory(host, cpu["vcpus"], cpu.get("threads", 1)))
    document: dict[str, Any] = {"cpu": cpu, "memory": memory}
    if cpu["placement"] == "dedicated" and draw(st.booleans()):
        document["isolation"] = {"exclusive": True}
    passed = draw(st.lists(st.sampled_from(host.pci), max_size=2, unique=True)) if host.pci else []
    if passed:
        localities = st.sampled_from(["required", "preferred", "preferred", "ignore"])
        document["pci"] = [
            {"address": str(device.address), "locality": draw(localities)} for device in passed
        ]
    if draw(st.integers(0, 3)) == 0:
        document["disk"] = [{"path": "disk.img", "iothread": 1}]
    return document


@st.composite
def _cpu(draw: st.DrawFn, host: Host, placement: str, most: int) -> dict[str, Any]:
    cpu: dict[str, Any] = {"placement": placement}
    threads = draw(st.sampled_from((None, None, None, None, 1, 2)))
    if threads is not None:
        cpu["threads"] = threads
    wide = threads or 1
    least = 2 if placement == "mixed" else 1
    likely = max(least, min(len(host.online) - 1, draw(st.sampled_from([most // 2, most]))) // wide)
    guest_cores = draw(st.integers(least, likely))
    cpu["vcpus"] = guest_cores * wide
    if guest_cores % 2 == 0 and draw(st.integers(0, 7)) == 0:
        cpu[draw(st.sampled_from(["sockets", "dies", "cores"]))] = 2
    if placement == "mixed":
        alone = draw(st.sets(st.integers(0, guest_cores - 1), min_size=1, max_size=guest_cores - 1))
        own = (at * wide + thread for at in alone for thread in range(wide))
        cpu["dedicated"] = str(CpuSet(own))
    if placement != "shared":
        cpu["smt"] = draw(st.sampled_from(["share", "share", "share", "require", "isolate"]))
        if draw(st.integers(0, 7)) == 0:
            cpu["kind"] = draw(st.sampled_from(["performance", "efficiency"]))
        if draw(st.integers(0, 7)) == 0:
            cpu["realtime"] = True
    if placement != "dedicated" and draw(st.integers(0, 2)) == 0:
        cpu["ratio"] = draw(st.integers(1, 3))
    return cpu


@st.composite
def _memory(draw: st.DrawFn, host: Host, vcpus: int, threads: int) -> dict[str, Any]:
    """Cells of the planner's choice, so many alike, or one by one; ordinary or huge pages."""
    huge = draw(st.sampled_from([False, False, False, False, "2MiB", "1GiB", "auto"]))
    unit, most = {False: (64, 16), "2MiB": (16, 10), "1GiB": (1024, 1), "auto": (512, 2)}[huge]
    memory: dict[str, Any] = {} if huge is False else {"hugepages": huge}
    kind = draw(st.sampled_from(["any", "any", "alike", "each", "each"]))
    guest_cores = vcpus // threads
    count = 1
    if kind == "alike":
        divisors = [number for number in range(1, _FEW + 1) if guest_cores % number == 0]
        count = memory["cells"] = draw(st.sampled_from(divisors))
    size = count * unit * draw(st.integers(1, most))
    if kind == "each":
        cells = draw(_cells(host, guest_cores, threads, (unit, most)))
        size = sum(int(cell["size"].removesuffix("MiB")) for cell in cells)
        memory["cell"] = cells
    memory["size"] = f"{size}MiB"
    if huge and draw(st.integers(0, 3)) == 0:
        memory["allocate"] = True
    if draw(st.integers(0, 7)) == 0 and host.nodes and "cell" not in memory:
        ids = [node.id for node in host.nodes]
        memory["nodes"] = str(CpuSet(draw(st.sets(st.sampled_from(ids), min_size=1))))
    return memory


@st.composite
def _cells(
    draw: st.DrawFn, host: Host, guest_cores: int, threads: int, memory: tuple[int, int]
) -> list[dict[str, Any]]:
    """The vCPUs cut anywhere between guest cores, and now and then a cell of memory only."""
    unit, most = memory
    count = draw(st.integers(1, min(_FEW, guest_cores)))
    places = st.integers(1, max(1, guest_cores - 1))
    cuts = draw(st.sets(places, min_size=count - 1, max_size=count - 1))
    cells: list[dict[str, Any]] = [
        {
            "vcpus": str(CpuSet(range(first * threads, end * threads))),
            "size": f"{unit * draw(st.integers(1, most))}MiB",
        }
        for first, end in pairwise([0, *sorted(cuts), guest_cores])
    ]
    if draw(st.integers(0, 7)) == 0:
        cells.append({"size": f"{unit * draw(st.integers(1, most))}MiB"})
    if host.nodes and draw(st.integers(0, 5)) == 0:
        cells[0]["node"] = draw(st.sampled_from([node.id for node in host.nodes]))
    return cells


@st.composite
def holdings(draw: st.DrawFn, host: Host) -> tuple[Claim | Holding, ...]:
    """Draw what other VMs hold of a host: a CPU is nobody's or one VM's."""
    left = sorted(host.online)
    made: list[Claim | Holding] = []
    for number in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        own = (
            draw(st.frozensets(st.sampled_from(left), max_size=len(left) // 4))
            if left
            else frozenset()
        )
        left = [cpu for cpu in left if cpu not in own]
        made.append(draw(_claim(host, number, CpuSet(own)) | _holding(host, number, CpuSet(own))))
    return tuple(made)


@st.composite
def _claim(draw: st.DrawFn, host: Host, number: int, own: CpuSet) -> Claim:
    return Claim(
        driver="qemu",
        uuid=_uuid(number),
        name=f"other{number}",
        exclusive=own,
        demands=[HugePageDemand(*pages) for pages in draw(_promised(host))],
    )


@st.composite
def _holding(draw: st.DrawFn, host: Host, number: int, own: CpuSet) -> Holding:
    parts: list[set[int]] = [set(), set(), set()]
    for cpu in own:
        draw(st.sampled_from(parts)).add(cpu)
    floating = draw(st.frozensets(st.sampled_from(sorted(host.online)), max_size=6))
    nodes = [node.id for node in host.nodes or ()] or [ANY_NODE]
    memory = draw(st.dictionaries(st.sampled_from(nodes), st.integers(1, 1 << 20), max_size=2))
    return Holding(
        name=f"other{number}",
        uuid=_uuid(number),
        exclusive=CpuSet(parts[0]),
        dedicated=CpuSet(parts[1]),
        idle=CpuSet(parts[2]),
        helpers=draw(_helpers(host)),
        floating=((CpuSet(floating), draw(st.integers(1, 4))),) if floating else (),
        memory=tuple(sorted(memory.items())),
        hugepages=draw(_promised(host)),
    )


@st.composite
def _helpers(draw: st.DrawFn, host: Host) -> CpuSet:
    if draw(st.booleans()):
        return CpuSet()
    return CpuSet(draw(st.frozensets(st.sampled_from(sorted(host.online)), max_size=2)))


@st.composite
def _promised(draw: st.DrawFn, host: Host) -> tuple[tuple[int, int, int], ...]:
    nodes = [ANY_NODE, *(node.id for node in host.nodes or ())]
    promise = st.tuples(
        st.sampled_from(nodes), st.sampled_from([2048, 2048, 1 << 20]), st.integers(1, 40)
    )
    return tuple(draw(st.lists(promise, max_size=1)))


def _uuid(number: int) -> str:
    return f"{number:08x}-0000-0000-0000-000000000000"
