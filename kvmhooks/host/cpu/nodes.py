"""The NUMA nodes of a host, their memory and their huge pages.

The files are those of the kernel's Documentation/ABI/stable/sysfs-devices-node and, for the huge
pages, Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve

from kvmhooks.host.files.formats import split_lines, split_words
from kvmhooks.host.model import HugePages, Memory, Node
from kvmhooks.values import MAX_CPU, CpuSet

if TYPE_CHECKING:
    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

NODES: Final = "sys/devices/system/node"
_HUGEPAGES: Final = "sys/kernel/mm/hugepages"

_NODE_NAME: Final = re.compile(r"node(?:0|[1-9]\d{0,4})", re.ASCII)
_CPU_NAME: Final = re.compile(r"cpu(?:0|[1-9]\d{0,4})", re.ASCII)
_SIZE_NAME: Final = re.compile(r"hugepages-[1-9]\d{0,9}kB", re.ASCII)
_BYTE: Final = re.compile(r"\d{1,3}", re.ASCII)
_MEMINFO: Final = re.compile(r"(?:Node \d+ )?(\w+):\s+(\d{1,15}) kB", re.ASCII)


def read_nodes(tree: Tree, *, memory: bool) -> tuple[Node, ...] | None:
    """Read the nodes; only which CPUs they have unless ``memory`` is asked for."""
    directory = tree.directory(NODES)
    if directory is None:
        return None
    with directory:
        numbers = _numbers(directory)
        if not numbers:
            return None
        online = directory.cpus("online")
        if online is not None and online != CpuSet(numbers):
            there = CpuSet(numbers).brief()
            directory.warn("online", f"says {online.brief() or 'none'}, but there are {there}")
        nodes = [_read_node(directory, number, memory=memory) for number in numbers]
    return tuple(_without_impossible_distances(tree, nodes))


def read_offline(tree: Tree) -> CpuSet | None:
    """Read which nodes there could be and are not."""
    directory = tree.directory(NODES)
    if directory is None:
        return None
    with directory:
        possible = directory.cpus("possible")
        numbers = _numbers(directory)
    return None if possible is None else possible - CpuSet(numbers)


def read_memory(tree: Tree) -> Memory | None:
    """Read the memory of the whole host (Documentation/filesystems/proc.rst, ``meminfo``)."""
    text = tree.text("proc/meminfo")
    sizes = parse_meminfo(text or "")
    pages = tree.directory(_HUGEPAGES)
    if text is None and pages is None:
        return None
    hugepages = None
    if pages is not None:
        with pages:
            hugepages = _read_pools(pages)
    return Memory(
        total_kib=sizes.get("MemTotal"),
        free_kib=sizes.get("MemFree"),
        available_kib=sizes.get("MemAvailable"),
        hugepages=hugepages,
    )


def parse_meminfo(text: str) -> dict[str, int]:
    """Read the sizes in KiB of ``/proc/meminfo`` or of a node's ``meminfo``."""
    found = (_MEMINFO.fullmatch(line.strip()) for line in split_lines(text))
    return {match[1]: int(match[2]) for match in found if match is not None}


def _numbers(directory: Directory) -> list[int]:
    """Return the nodes that have a directory, which those that are offline have not."""
    found = (int(name.removeprefix("node")) for name in directory.names(_NODE_NAME))
    return sorted(number for number in found if number <= MAX_CPU)


def _read_node(nodes: Directory, number: int, *, memory: bool) -> Node:
    directory = nodes.child(f"node{number}")
    if directory is None:
        return Node(id=number)
    with directory:
        if not memory:
            return Node(id=number, cpus=_read_cpus(directory))
        sizes = _read_sizes(directory)
        pages = directory.child("hugepages")
        hugepages = None
        if pages is not None:
            with pages:
                hugepages = _read_pools(pages)
        return Node(
            id=number,
            cpus=_read_cpus(directory),
            memory_kib=sizes.get("MemTotal"),
            free_kib=sizes.get("MemFree"),
            distances=_read_distances(directory),
            hugepages=hugepages,
            **_read_access(directory),
        )


def _read_sizes(directory: Directory) -> dict[str, int]:
    text = directory.text("meminfo")
    sizes = parse_meminfo(text or "")
    if text is None:
        directory.warn_missing("meminfo")
    elif "MemTotal" not in sizes:
        directory.warn("meminfo", "does not say how much memory there is")
    return sizes


def _read_access(directory: Directory) -> dict[str, Any]:
    """Read the best access class (Documentation/admin-guide/mm/numaperf.rst)."""
    access = directory.child("access0")
    initiators = access.child("initiators") if access is not None else None
    if access is not None:
        access.close()
    if initiators is None:
        return {}
    with initiators:
        found = (int(name.removeprefix("node")) for name in initiators.names(_NODE_NAME))
        return {
            "initiators": tuple(sorted(found)),
            "read_bandwidth_mib": initiators.integer("read_bandwidth"),
            "write_bandwidth_mib": initiators.integer("write_bandwidth"),
            "read_latency_ns": initiators.integer("read_latency"),
            "write_latency_ns": initiators.integer("write_latency"),
        }


def _read_cpus(directory: Directory) -> CpuSet | None:
    """Read the list or the mask; older captured trees hold only links to the CPUs."""
    cpus = directory.sharing("cpumap", "cpulist")
    if cpus is not None:
        return cpus
    found = (int(name.removeprefix("cpu")) for name in directory.names(_CPU_NAME))
    linked = CpuSet(number for number in found if number <= MAX_CPU)
    if not linked:
        directory.warn_missing("cpumap")
    return linked or None


def _read_distances(directory: Directory) -> tuple[int, ...] | None:
    text = directory.text("distance")
    if text is None:
        directory.warn_missing("distance")
        return None
    words = split_words(text)
    # A distance is a byte of the ACPI table SLIT; 255 means unreachable.
    if not words or not all(_BYTE.fullmatch(word) and int(word) <= 255 for word in words):
        directory.warn("distance", f"found {text[:40]!r}, expected numbers up to 255")
        return None
    return tuple(map(int, words))


def _without_impossible_distances(tree: Tree, nodes: list[Node]) -> list[Node]:
    """Leave out distances that are not one for each node, since whose they are is unknown."""
    checked = []
    for node in nodes:
        if node.distances is not None and len(node.distances) != len(nodes):
            tree.flaws.add(
                f"{NODES}/node{node.id}/distance",
                f"holds {len(node.distances)} distances for {len(nodes)} nodes",
            )
            checked.append(evolve(node, distances=None))
        else:
            checked.append(node)
    return checked


def _read_pools(directory: Directory) -> tuple[HugePages, ...]:
    pools = []
    for name in directory.names(_SIZE_NAME):
        pool = directory.child(name)
        if pool is None:
            continue
        with pool:
            pools.append(
                HugePages(
                    size_kib=int(name.removeprefix("hugepages-").removesuffix("kB")),
                    total=pool.integer("nr_hugepages"),
                    free=pool.integer("free_hugepages"),
                    surplus=pool.integer("surplus_hugepages"),
                )
            )
    return tuple(sorted(pools, key=lambda pool: pool.size_kib))
