"""The NUMA nodes of a host, their memory and their huge pages.

The files are those of the kernel's Documentation/ABI/stable/sysfs-devices-node and, for the huge
pages, Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.model import HugePages, Memory, Node
from kvmhooks.values import MAX_CPU, CpuSet

if TYPE_CHECKING:
    from kvmhooks.host.tree import Directory, Tree

NODES: Final = "sys/devices/system/node"
_HUGEPAGES: Final = "sys/kernel/mm/hugepages"

_NODE_NAME: Final = re.compile(r"node(0|[1-9]\d{0,4})", re.ASCII)
_CPU_NAME: Final = re.compile(r"cpu(0|[1-9]\d{0,4})", re.ASCII)
_SIZE_NAME: Final = re.compile(r"hugepages-([1-9]\d{0,9})kB", re.ASCII)
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
        nodes = [_read_node(directory, number, memory=memory) for number in numbers]
    return tuple(_without_impossible_distances(tree, nodes))


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
    found = (_MEMINFO.fullmatch(line.strip()) for line in text.splitlines())
    return {match[1]: int(match[2]) for match in found if match is not None}


def _numbers(directory: Directory) -> list[int]:
    """The nodes that have a directory, which those that are offline have not."""
    found = (_NODE_NAME.fullmatch(name) for name in directory.names())
    numbers = sorted(
        number for match in found if match is not None and (number := int(match[1])) <= MAX_CPU
    )
    online = directory.cpus("online")
    if online is not None and online != CpuSet(numbers):
        directory.warn("online", f"says {online or 'none'}, but there are {CpuSet(numbers)}")
    return numbers


def _read_node(nodes: Directory, number: int, *, memory: bool) -> Node:
    directory = nodes.child(f"node{number}")
    if directory is None:
        return Node(id=number)
    with directory:
        if not memory:
            return Node(id=number, cpus=_read_cpus(directory))
        sizes = parse_meminfo(directory.text("meminfo") or "")
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
        )


def _read_cpus(directory: Directory) -> CpuSet | None:
    """Read the list or the mask; older captured trees hold only links to the CPUs."""
    cpus = directory.sharing("cpumap", "cpulist")
    if cpus is not None:
        return cpus
    found = (_CPU_NAME.fullmatch(name) for name in directory.names())
    linked = CpuSet(int(match[1]) for match in found if match is not None)
    return linked or None


def _read_distances(directory: Directory) -> tuple[int, ...] | None:
    text = directory.text("distance")
    if text is None:
        return None
    words = text.split()
    # A distance is a byte of the ACPI table SLIT; 255 means unreachable.
    if not words or not all(word.isdecimal() and int(word) <= 255 for word in words):
        directory.warn("distance", f"found {text[:40]!r}, expected numbers up to 255")
        return None
    return tuple(map(int, words))


def _without_impossible_distances(tree: Tree, nodes: list[Node]) -> list[Node]:
    """Leave out distances that are not one for each node, since whose they are is unknown."""
    checked = []
    for node in nodes:
        distances = node.distances
        if distances is not None and len(distances) != len(nodes):
            tree.flaws.add(
                f"{NODES}/node{node.id}/distance",
                f"holds {len(distances)} distances for {len(nodes)} nodes",
            )
            distances = None
        checked.append(
            Node(
                id=node.id,
                cpus=node.cpus,
                memory_kib=node.memory_kib,
                free_kib=node.free_kib,
                distances=distances,
                hugepages=node.hugepages,
            )
        )
    return checked


def _read_pools(directory: Directory) -> tuple[HugePages, ...]:
    pools = []
    for name in directory.names():
        found = _SIZE_NAME.fullmatch(name)
        pool = directory.child(name) if found else None
        if found is None or pool is None:
            continue
        with pool:
            pools.append(
                HugePages(
                    size_kib=int(found[1]),
                    total=pool.integer("nr_hugepages"),
                    free=pool.integer("free_hugepages"),
                )
            )
    return tuple(sorted(pools, key=lambda pool: pool.size_kib))
