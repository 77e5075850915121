"""The resources that a VM asks for, in one form: its cells, in guest cores and units of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from attrs import evolve, field, frozen

from kvmhooks.errors import PlanError
from kvmhooks.placement.model import ORDINARY_PAGE_KIB
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from kvmhooks.spec.model import VmSpec

MIB: Final = 1024
"""In KiB: ordinary memory is divided among cells in these units."""

AUTO_PAGES: Final = (1 << 20, 2 << 10, ORDINARY_PAGE_KIB)
"""The page sizes in KiB that ``hugepages = "auto"`` means, the best first."""


@frozen
class CellAsk:
    """One guest cell: what it needs of a node."""

    vcpus: CpuSet
    cores: int
    """Guest cores with a CPU for each of their threads."""
    floating: int
    """vCPUs that float."""
    units: int
    """Memory."""
    room: int
    """The units that there must be room for: those, but for shares that were rounded."""
    node: int | None = None
    added: int = 0
    """MiB of ordinary memory that is added to it (DIMMs, virtio-mem), whatever its pages are."""

    def with_other(self, other: CellAsk) -> CellAsk:
        """Return both, on one node."""
        return CellAsk(
            self.vcpus | other.vcpus,
            self.cores + other.cores,
            self.floating + other.floating,
            self.units + other.units,
            self.room + other.room,
            self.node if other.node is None else other.node,
            self.added + other.added,
        )

    def contradicts(self, other: CellAsk) -> bool:
        """Return whether they must be on different nodes."""
        return self.node is not None and other.node is not None and self.node != other.node


@frozen(kw_only=True)
class Request:
    """A VM, with the guest's threads in a core and its page size chosen."""

    spec: VmSpec
    threads: int
    page_kib: int
    page_rank: int
    cells: tuple[CellAsk, ...]
    """Those that were given; empty when the planner is to make them."""
    dedicated: CpuSet = field(init=False)
    """The vCPUs with a CPU each."""

    @dedicated.default
    def _dedicated(self) -> CpuSet:
        return dedicated_of(self.spec)

    @property
    def unit_kib(self) -> int:
        """The unit that memory is divided in."""
        return MIB if self.page_kib == ORDINARY_PAGE_KIB else self.page_kib

    @property
    def units(self) -> int:
        """All of the memory."""
        return self.spec.memory.size // 1024 // self.unit_kib

    @property
    def guest_cores(self) -> int:
        """The number of guest cores."""
        return self.spec.cpu.vcpus // self.threads

    def even_cells(self, sizes: Sequence[int]) -> tuple[CellAsk, ...]:
        """Return cells of so many guest cores each, the memory divided as the vCPUs are."""
        shares = [self.units * size // self.guest_cores for size in sizes]
        left = self.units - sum(shares)
        made, first = [], 0
        for at, size in enumerate(sizes):
            vcpus = CpuSet(range(first * self.threads, (first + size) * self.threads))
            cell = self._cell(vcpus, shares[at] + (at < left))
            made.append(evolve(cell, room=self.room_for(size)))
            first += size
        return tuple(made)

    def room_for(self, size: int) -> int:
        """Return the units that a cell of so many guest cores needs room for."""
        return -(-self.units * size // self.guest_cores)

    def _cell(self, vcpus: CpuSet, units: int, node: int | None = None) -> CellAsk:
        own = vcpus & self.dedicated
        return CellAsk(vcpus, len(own) // self.threads, len(vcpus) - len(own), units, units, node)

    def with_given_cells(self, asked: int | None = None) -> Request | None:
        """Return the same with the cells that the spec gives, else so many alike if ``asked``.

        None if its pages or its guest cores cannot.
        """
        memory, vcpus = self.spec.memory, self.spec.cpu.vcpus
        if memory.cell:
            sizes = [cell.size // 1024 for cell in memory.cell]
            if any(size % self.unit_kib for size in sizes):
                return None
            cells = tuple(
                self._cell(cell.vcpus, size // self.unit_kib, cell.node)
                for cell, size in zip(memory.cell, sizes, strict=True)
            )
            return self._with(cells)
        if self.spec.memory.size // 1024 % self.unit_kib:
            return None
        count = asked or memory.cells or (1 if self.spec.cpu.placement == "mixed" else None)
        if count is None:
            return self
        if self.units % count or self.guest_cores % count:
            return None
        share = vcpus // count
        return self._with(
            tuple(
                self._cell(CpuSet(range(at * share, (at + 1) * share)), self.units // count)
                for at in range(count)
            )
        )

    def _with(self, cells: tuple[CellAsk, ...]) -> Request:
        more = self.spec.memory.added_kib()
        cells = tuple(
            evolve(cell, added=-(-more.get(at, 0) // MIB)) for at, cell in enumerate(cells)
        )
        return Request(
            spec=self.spec,
            threads=self.threads,
            page_kib=self.page_kib,
            page_rank=self.page_rank,
            cells=cells,
        )


def dedicated_of(spec: VmSpec) -> CpuSet:
    """Return the vCPUs that have a CPU each."""
    if spec.cpu.placement == "dedicated":
        return CpuSet(range(spec.cpu.vcpus))
    return spec.cpu.dedicated or CpuSet()


def requests(spec: VmSpec, host_threads: int, nodes: int = 1) -> list[Request]:
    """Return every way to read a spec: each number of threads and page size that is left open.

    On a host of so many ``nodes`` a VM to which memory is added may have as many cells, too. Raises
    ``PlanError`` when its own numbers do not come out even.
    """
    counts = cell_counts(spec, nodes)
    made = [
        request
        for threads in thread_counts(spec, host_threads)
        for rank, page_kib in page_sizes(spec)
        for count in counts
        if (
            request := Request(
                spec=spec, threads=threads, page_kib=page_kib, page_rank=rank, cells=()
            ).with_given_cells(count)
        )
        is not None
    ]
    if not made and spec.memory.added_kib() and not spec.memory.cells:
        expected = "memory.cells, or memory.cell: the cells of the guest, one by one"
        raise PlanError("memory", f"cells up to {max(spec.memory.added_kib())}", expected)
    if not made:  # the checks of a file let none of these pass; a spec may be made otherwise
        whole = spec.memory.hugepages or "1MiB"
        each = f" for each of {spec.memory.cells} cells" if spec.memory.cells else ""
        found, expected = str(spec.memory.size), f"whole multiples of {whole}{each}"
        raise PlanError("memory.size", found, expected)
    return made


def cell_counts(spec: VmSpec, nodes: int) -> Sequence[int | None]:
    """Return how many cells a VM may have to which memory is added; None leaves that open.

    Its DIMMs name their cells, so without a word of them it has as many as they need, or more: at
    most one for each node.
    """
    memory = spec.memory
    added = memory.added_kib()
    if not added or memory.cell or memory.cells is not None or spec.cpu.placement == "mixed":
        return (None,)
    least = 1 + max(added)
    return range(least, max(least, nodes) + 1)


def page_sizes(spec: VmSpec) -> list[tuple[int, int]]:
    """Yield (rank, KiB): the page sizes that the memory may be made of."""
    pages = spec.memory.hugepages
    if pages == "auto":
        return list(enumerate(AUTO_PAGES))
    return [(0, pages.in_kib if pages else ORDINARY_PAGE_KIB)]


def are_threads_told(spec: VmSpec) -> bool:
    """Return whether the person said how many threads a guest core has."""
    cpu = spec.cpu
    return cpu.threads is not None or (cpu.sockets is not None and cpu.cores is not None)


def thread_counts(spec: VmSpec, host_threads: int) -> list[int]:
    """Return the guest's threads in a core to be tried, the most first. Raises ``PlanError``."""
    cpu = spec.cpu
    known = math.prod(count or 1 for count in (cpu.sockets, cpu.dies, cpu.cores))
    if cpu.threads is not None:
        candidates = [cpu.threads]
    elif cpu.sockets is not None and cpu.cores is not None:
        candidates = [cpu.vcpus // known]
    elif cpu.placement == "shared" or cpu.smt == "isolate":
        candidates = [1]
    else:
        candidates = [
            threads for threads in range(host_threads, 0, -1) if cpu.vcpus % (known * threads) == 0
        ]
    whole = [threads for threads in candidates if not any(_cuts(spec, threads))]
    if not whole:
        at = next(_cuts(spec, candidates[-1]))
        raise PlanError(*at)
    return whole


def _cuts(spec: VmSpec, threads: int) -> Iterator[tuple[str, str, str]]:
    """Yield what would cut a guest core in two."""
    cells = spec.memory.cells
    guest_cores = spec.cpu.vcpus // threads
    if cells is not None and guest_cores % cells:
        yield "memory.cells", str(cells), f"a divisor of the {guest_cores} cores"
    given = [(f"memory.cell[{at}].vcpus", cell.vcpus) for at, cell in enumerate(spec.memory.cell)]
    dedicated = ("cpu.dedicated", dedicated_of(spec))
    for at, vcpus in (*given, dedicated) if threads > 1 else ():
        if len(vcpus) != threads * len({vcpu // threads for vcpu in vcpus}):
            yield at, str(vcpus), f"whole guest cores of {threads} threads"
