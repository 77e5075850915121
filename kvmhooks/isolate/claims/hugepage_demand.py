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
    from typing import Final

    from kvmhooks.isolate.claims.xml import Element
    from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand

ANY_NODE: Final = -1
"""The node of pages that may lie anywhere."""

DEFAULT_SIZE: Final = 0
"""The size of pages when the XML leaves it to the host (``Hugepagesize`` in /proc/meminfo)."""

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
    for cell, memory_kib in _cells_of(domain):
        size = _size_for(cell, sizes)
        nodes = tuple(_nodes_for(domain, cell))
        for at, node in enumerate(nodes):
            share = memory_kib * (at + 1) // len(nodes) - memory_kib * at // len(nodes)
            wanted[node, size] = wanted.get((node, size), 0) + share
    return tuple(
        HugePageDemand(node, size, -(-memory_kib // size) if size else memory_kib)
        for (node, size), memory_kib in sorted(wanted.items())
        if memory_kib
    )


def memory_of(domain: Element) -> dict[int, int]:
    """Return the KiB of ordinary memory on each host node; none of a domain on huge pages.

    Raises ``IsolationError`` or ``ValueFormatError``.
    """
    wanted: dict[int, int] = {}
    if domain.find("memoryBacking/hugepages") is not None:
        return wanted
    for cell, memory_kib in _cells_of(domain):
        nodes = tuple(_nodes_for(domain, cell))
        for at, node in enumerate(nodes):
            share = memory_kib * (at + 1) // len(nodes) - memory_kib * at // len(nodes)
            wanted[node] = wanted.get(node, 0) + share
    return wanted


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
    for device in domain.findall("devices/memory"):
        size = device.find("target/size")
        if device.get("model") == "dimm" and size is not None:
            number = int(device.findtext("target/node", "0"))
            added = kib(size.text, size.get("unit", "KiB"), "memory device")
            cells[number] = cells.get(number, 0) + added
    return [(number, cells[number]) for number in sorted(cells)]


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
