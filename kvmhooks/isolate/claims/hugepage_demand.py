"""The huge pages that a domain's memory is made of, per host node and size.

libvirt's rules: ``<memoryBacking><hugepages><page size unit nodeset>`` names guest cells,
``<numatune>`` says on which host nodes each cell lies
(https://libvirt.org/formatdomain.html#memory-backing and #numa-node-tuning).
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _collections_abc import Iterable, Iterator
    from typing import Final

    from kvmhooks.isolate.claims.xml import Element
    from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand

ANY_NODE: Final = -1
"""The node of pages that may lie anywhere."""

DEFAULT_SIZE: Final = 0
"""The size of pages when the XML leaves it to the host (``Hugepagesize`` in /proc/meminfo)."""

_ORDINARY_KIB: Final = 4
"""The size of an ordinary page on x86."""

_UNITS: Final = {
    "b": 1, "B": 1, "bytes": 1, "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10,
    "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20, "GB": 10**9, "G": 1 << 30,
    "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip
"""libvirt's units in bytes (``virScaleInteger()``, src/util/virutil.c)."""


def of_domain(domain: Element) -> tuple[HugePageDemand, ...]:
    """Return the demands in order; none for a domain on ordinary pages."""
    backing = domain.find("memoryBacking/hugepages")
    if backing is None:
        return ()
    from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand  # noqa: PLC0415 -- few have any

    sizes = [
        (page.get("nodeset"), kib(page.get("size"), page.get("unit", "KiB"), "page"))
        for page in backing.findall("page")
    ]
    wanted: dict[tuple[int, int], int] = {}
    shares = [
        (kib, _size_for(cell, sizes), _nodes_for(domain, cell)) for cell, kib in _cells_of(domain)
    ]
    for device in _added_to(domain):
        if device.model == "dimm" and not device.is_ordinary:
            size = device.size_kib or _size_for(device.cell, sizes)
            shares.append((device.kib, size, device.nodes or _nodes_for(domain, device.cell)))
    for memory_kib, size, nodes in shares:
        for node, share in _divided(memory_kib, nodes):
            wanted[node, size] = wanted.get((node, size), 0) + share
    return tuple(
        HugePageDemand(node, size, -(-memory_kib // size) if size else memory_kib)
        for (node, size), memory_kib in sorted(wanted.items())
        if memory_kib
    )


def memory_of(domain: Element) -> dict[int, int]:
    """Return the KiB of ordinary memory on each host node, that of memory devices too.

    virtio-mem counts with the size that it may grow to. Raises ``IsolationError`` or
    ``ValueFormatError``.
    """
    is_huge = domain.find("memoryBacking/hugepages") is not None
    shares = [] if is_huge else [(kib, _nodes_for(domain, cell)) for cell, kib in _cells_of(domain)]
    shares += [
        (device.kib, device.nodes or _nodes_for(domain, device.cell))
        for device in _added_to(domain)
        if device.is_ordinary or not (is_huge or device.size_kib)
    ]
    wanted: dict[int, int] = {}
    for memory_kib, nodes in shares:
        for node, share in _divided(memory_kib, nodes):
            wanted[node] = wanted.get(node, 0) + share
    return wanted


def _divided(memory_kib: int, nodes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the KiB of each of some nodes."""
    among = tuple(nodes)
    for at, node in enumerate(among):
        share = memory_kib * (at + 1) // len(among) - memory_kib * at // len(among)
        yield node, share


def _cells_of(domain: Element) -> list[tuple[int | None, int]]:
    """Return (guest cell, memory in KiB); the cell is None for a guest without cells.

    Memory devices (DIMMs) are part of ``<memory>`` and no part of a cell's own memory.
    """
    cells: dict[int, int] = {}
    for place, cell in enumerate(domain.findall("cpu/numa/cell")):
        number = int(cell.get("id") or place)
        cells[number] = kib(cell.get("memory"), cell.get("unit", "KiB"), "cell")
    if not cells:
        memory = domain.find("memory")
        if memory is None:
            return []
        return [(None, kib(memory.text, memory.get("unit", "KiB"), "memory"))]
    return [(number, cells[number]) for number in sorted(cells)]


class _Added:
    """A memory device: a DIMM, or memory that grows (virtio-mem).

    https://libvirt.org/formatdomain.html#memory-devices
    """

    __slots__ = ("cell", "kib", "model", "nodes", "size_kib")

    def __init__(self, device: Element) -> None:
        size, page = device.find("target/size"), device.find("source/pagesize")
        nodes = device.findtext("source/nodemask").strip()
        self.model = device.get("model")
        self.cell = int(device.findtext("target/node", "0"))
        self.kib = 0
        if size is not None:
            self.kib = kib(size.text, size.get("unit", "KiB"), "memory device")
        self.size_kib = 0
        """The size of its pages; 0 where its cell's are its own."""
        if page is not None:
            self.size_kib = kib(page.text, page.get("unit", "KiB"), "pagesize")
        self.nodes = CpuSet.parse(nodes) if nodes else CpuSet()
        """The nodes that it comes from; empty where its cell's are its own."""

    @property
    def is_ordinary(self) -> bool:
        """Its pages are said to be ordinary ones."""
        return 0 < self.size_kib <= _ORDINARY_KIB


def _added_to(domain: Element) -> list[_Added]:
    """Return the memory devices of a guest with cells: others have none, says libvirt."""
    if domain.find("cpu/numa/cell") is None:
        return []
    return [
        _Added(device)
        for device in domain.findall("devices/memory")
        if device.get("model") in {"dimm", "virtio-mem"}
    ]


def _size_for(cell: int | None, sizes: list[tuple[str, int]]) -> int:
    """Return the page size of a guest cell: its own, else the one without a nodeset."""
    for nodeset, size in sizes:
        if nodeset and (cell or 0) in CpuSet.parse(nodeset):
            return size
    for nodeset, size in sizes:
        if not nodeset:
            return size
    return DEFAULT_SIZE


def _nodes_for(domain: Element, cell: int | None) -> CpuSet | tuple[int]:
    """Return the host nodes of a guest cell: its ``<memnode>``, else ``<memory>``, else any."""
    for memnode in domain.findall("numatune/memnode"):
        if cell is not None and memnode.get("cellid") == str(cell):
            return CpuSet.parse(memnode.get("nodeset")) or (ANY_NODE,)
    memory = domain.find("numatune/memory")
    if memory is not None and memory.get("nodeset"):
        return CpuSet.parse(memory.get("nodeset"))
    return (ANY_NODE,)


def kib(text: str, unit: str, what: str) -> int:
    """Return a size in KiB, rounded up. Raises ``IsolationError``."""
    number = text.strip()
    is_number = number.isascii() and number.isdigit() and len(number) <= 18
    if not is_number or unit not in _UNITS:
        raise IsolationError(
            f"domain XML: {what}: found {text[:40]!r} {unit[:10]!r}, expected a size"
        )
    return -(-int(number) * _UNITS[unit] // 1024)
