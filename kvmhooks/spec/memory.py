"""``[memory]``: the guest's memory, its NUMA cells, and what is added to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen

from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import CellId, HugePages, Number
from kvmhooks.values import ByteSize, CpuSet


@frozen(kw_only=True)
class MemoryCell:
    """One NUMA cell of the guest."""

    vcpus: CpuSet = CpuSet()
    """Its vCPUs, as a list: "0-3,8"; by default none: a cell of memory only."""
    size: ByteSize
    """The memory in it."""
    node: Number | None = None
    """The host node that it must be on; by default the planner chooses."""


@frozen(kw_only=True)
class Dimm:
    """A memory module."""

    size: ByteSize
    """Its size."""
    cell: CellId = CellId(0)
    """The guest cell that it belongs to."""


@frozen(kw_only=True)
class VirtioMem:
    """Memory that grows and shrinks while the guest runs."""

    size: ByteSize
    """Its largest size."""
    requested: ByteSize | None = None
    """The size that the guest shall make it at the start; by default all."""
    block: ByteSize = ByteSize(2 << 20)
    """In which steps: a power of two, 2MiB at least."""
    cell: CellId = CellId(0)
    """The guest cell that it belongs to."""


@frozen(kw_only=True)
class Memory:
    """The guest's memory."""

    size: ByteSize
    """The size of all of it: 512MiB, 4GiB."""
    cells: int | None = None
    """The number of guest NUMA cells, all alike; by default one for each host node that is used."""
    cell: tuple[MemoryCell, ...] = ()
    """The guest NUMA cells one by one, where they are not alike."""
    hugepages: HugePages = False
    """The size of the explicit huge pages it is made of (2MiB, 1GiB); auto: the largest that fit;
    or false."""
    allocate: bool = enabled_by("hugepages", default=False)
    """Huge pages that are not there yet may be allocated when the VM starts."""
    mode: Literal["strict", "preferred"] | None = None
    """The binding of memory to its nodes: strict, or preferred; by default strict for dedicated
    vCPUs and for huge pages, else preferred.
    """
    nodes: CpuSet | None = None
    """The host nodes that the VM may use, as a list: "0-1"; by default all."""
    backend: Literal["auto", "ram", "memfd", "file"] = "auto"
    """ram: anonymous; memfd: can be shared; file: in path; auto: memfd where pages need it."""
    path: Path | None = enabled_by(on("backend", "file"))
    """The folder for backend file: a mount of hugetlbfs, or of shared memory."""
    prealloc: bool | None = None
    """All of it is allocated before the start; by default huge pages are."""
    prealloc_threads: int | None = enabled_by((on("prealloc"), on("hugepages")))
    """The number of threads that allocate it."""
    share: bool | None = None
    """Other processes can map it; by default if a device needs that (virtiofs)."""
    locked: bool = False
    """Neither it nor the rest of QEMU is ever swapped."""
    discard: bool = enabled_by(on("backend", "file"), default=False)
    """Its content is dropped at the end rather than written back (shared or file)."""
    merge: bool = True
    """Equal pages may be merged with other guests' (KSM)."""
    maximum: ByteSize | None = None
    """The size that it may grow to by adding DIMMs."""
    slots: int | None = enabled_by("maximum")
    """The number of DIMMs that may be added; by default 16 where there is a maximum."""
    dimm: tuple[Dimm, ...] = enabled_by("maximum", default=())
    """DIMMs that are there from the start and can be taken out."""
    virtio: tuple[VirtioMem, ...] = enabled_by("maximum", default=())
    """Memory that grows and shrinks in blocks (virtio-mem)."""

    def added_kib(self) -> dict[int, int]:
        """Return the ordinary memory that DIMMs and virtio-mem add to each cell, grown wholly."""
        devices: tuple[Dimm | VirtioMem, ...] = (*self.dimm, *self.virtio)
        added: dict[int, int] = {}
        for each in devices:
            added[each.cell] = added.get(each.cell, 0) + each.size.in_kib
        return added
