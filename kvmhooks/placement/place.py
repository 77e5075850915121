"""vCPUs on the CPUs of a host: dedicated ones on whole cores, shared ones over a pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.placement.ground import Field, Ground
from kvmhooks.placement.spread import fewest
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import ByteSize, CpuSet, union
from kvmhooks.wording import counted


@frozen
class Placed:
    """Where the vCPUs of a VM are: for each, its CPUs; for each guest cell, its field."""

    vcpus: tuple[CpuSet, ...]
    cells: tuple[Field, ...]
    emulator: CpuSet
    why: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def place_dedicated(spec: VmSpec, ground: Ground, threads: int) -> Placed:
    """Give each vCPU a CPU of its own, each guest core a whole core of the host.

    As few nodes as possible are used, and on a node as few L3 caches. Raises ``PlanError``.
    """
    if not ground.housekeeping:
        raise _nothing_to_share(spec)
    guest_cores = spec.cpu.vcpus // threads
    for cells in _cell_counts(spec, guest_cores, len(ground.fields)):
        memory = _cells_by_memory(spec, ground, cells)
        capacity = {
            place: min(field.cores_of(threads) // (guest_cores // cells), memory.get(place, cells))
            for place, field in enumerate(ground.fields)
        }
        chosen = _spread(cells, capacity, ground)
        if chosen is not None:
            return _on_cores(ground, chosen, cores_per_cell=guest_cores // cells, threads=threads)
    raise _too_large(spec, ground, guest_cores, threads)


def place_shared(spec: VmSpec, ground: Ground, threads: int) -> Placed:
    """Let the vCPUs of each guest cell float over the CPUs of one node.

    A VM with more vCPUs than any node has CPUs, which asks for no cells, floats over all of them.
    Raises ``PlanError``.
    """
    pool = union(field.pool for field in ground.fields)
    if not pool:
        raise _nothing_to_share(spec)
    vcpus = spec.cpu.vcpus
    widest = max(len(field.pool) for field in ground.fields)
    if spec.memory.cells is None and vcpus > widest and len(ground.fields) > 1:
        if not _holds_memory(spec, ground):
            raise _too_much_memory(spec, ground, 1)
        return _over_all(spec, pool)
    cells = next(_cell_counts(spec, vcpus // threads, 1))
    memory = _cells_by_memory(spec, ground, cells)
    for ratio in range(1, vcpus + 1):
        capacity = {
            place: min(len(field.pool) * ratio * cells // vcpus, memory.get(place, cells))
            for place, field in enumerate(ground.fields)
        }
        chosen = _spread(cells, capacity, ground)
        if chosen is not None:
            return _floating(spec, chosen, ratio)
    raise _too_much_memory(spec, ground, cells)


def _cell_counts(spec: VmSpec, guest_cores: int, most: int) -> Iterator[int]:
    """The numbers of guest cells to try: the spec's, else the fewest that come out even."""
    asked = spec.memory.cells
    if asked is not None:
        if guest_cores % asked:
            raise PlanError("memory.cells", str(asked), f"a divisor of the {guest_cores} cores")
        yield asked
        return
    unit = pages_of(spec) or 1 << 20
    for cells in range(1, most + 1):
        if guest_cores % cells == 0 and spec.memory.size % (unit * cells) == 0:
            yield cells


def _cells_by_memory(spec: VmSpec, ground: Ground, cells: int) -> dict[int, int]:
    """How many cells the memory of each field holds, where that is known."""
    pages = pages_of(spec)
    cell_kib = spec.memory.size // 1024 // cells
    holds = {}
    for place, field in enumerate(ground.fields):
        if pages:
            holds[place] = field.pages.get(pages.in_kib, 0) * pages.in_kib // cell_kib
        elif field.memory_kib is not None:
            holds[place] = field.memory_kib // cell_kib
    return holds


def pages_of(spec: VmSpec) -> ByteSize | None:
    """The size of its huge pages, which ``plan`` has refused to choose."""
    pages = spec.memory.hugepages
    assert pages != "auto"
    return pages or None


def _holds_memory(spec: VmSpec, ground: Ground) -> bool:
    """Whether all fields together hold the memory, as far as is known."""
    mib = spec.memory.size >> 20
    held = _cells_by_memory(spec, ground, cells=mib)
    return len(held) < len(ground.fields) or sum(held.values()) >= mib


def _spread(cells: int, capacity: Mapping[int, int], ground: Ground) -> list[Field] | None:
    """The field of each cell, by how many cells each field can take."""
    taken = fewest(cells, capacity)
    if taken is None:
        return None
    return [ground.fields[place] for place, count in taken.items() for _ in range(count)]


def _on_cores(ground: Ground, cells: list[Field], *, cores_per_cell: int, threads: int) -> Placed:
    left = {
        field: [[core for core in group if len(core) >= threads] for group in field.cores]
        for field in cells
    }
    vcpus: list[CpuSet] = []
    for field in cells:
        groups = left[field]
        taken = fewest(cores_per_cell, {at: len(group) for at, group in enumerate(groups)})
        assert taken is not None  # the capacity of a field counts the same cores
        for at, count in taken.items():
            for core in groups[at][:count]:
                vcpus += [CpuSet((cpu,)) for cpu in list(core)[:threads]]
            del groups[at][:count]
    nodes = {field.node for field in cells}
    near = union(field.near for field in ground.fields if field.node in nodes)
    emulator = ground.housekeeping & near or ground.housekeeping
    spans = " and ".join(str(field) for field in dict.fromkeys(cells))
    enough = "one node is enough" if len(nodes) == 1 else f"no fewer than {len(nodes)} nodes fit"
    cores = counted(len(vcpus) // threads, "whole core")
    why = [
        f"{counted(len(vcpus), 'vCPU')} on {cores} of {spans}: {enough}",
        f"kept for the host, a core of each package: CPUs {ground.housekeeping}",
        f"QEMU's other threads: CPUs {emulator}",
    ]
    return Placed(tuple(vcpus), tuple(cells), emulator, tuple(why))


def _over_all(spec: VmSpec, pool: CpuSet) -> Placed:
    anywhere = Field(node=None, near=pool, pool=pool, cores=(), memory_kib=None, pages={})
    ratio = -(-spec.cpu.vcpus // len(pool))
    placed = _floating(spec, [anywhere], ratio)
    why = f"{spec.cpu.vcpus} vCPUs are more than any node has CPUs: their memory is not bound"
    return Placed(placed.vcpus, placed.cells, pool, (*placed.why, why), placed.warnings)


def _floating(spec: VmSpec, cells: list[Field], ratio: int) -> Placed:
    vcpus = spec.cpu.vcpus
    pool = union(field.pool for field in cells)
    share = vcpus // len(cells)
    why = f"{counted(vcpus, 'vCPU')} float over CPUs {pool}, shared with whatever else runs there"
    waiting = f"{vcpus} vCPUs share {len(pool)} CPUs: they wait for each other"
    return Placed(
        tuple(cells[vcpu // share].pool for vcpu in range(vcpus)),
        tuple(cells),
        pool,
        (why,),
        (waiting,) if ratio > 1 else (),
    )


def _nothing_to_share(spec: VmSpec) -> PlanError:
    return PlanError(
        "cpu.placement",
        f"{spec.cpu.placement}, but every online CPU is isolated by the kernel or another VM's own",
        "CPUs to share with the host: for shared vCPUs, or for QEMU's other threads",
    )


def _too_large(spec: VmSpec, ground: Ground, guest_cores: int, threads: int) -> PlanError:
    """Say what binds: the cores, or else the memory."""
    fitting = {str(field): field.cores_of(threads) for field in ground.fields}
    if guest_cores > sum(fitting.values()):
        have = ", ".join(f"{count} on {name}" for name, count in fitting.items())
        taken = f", {ground.taken} are other VMs' own" if ground.taken else ""
        return PlanError(
            "cpu.vcpus",
            f"{spec.cpu.vcpus} dedicated, which take {counted(guest_cores, 'whole core')} of "
            f"{counted(threads, 'thread')}",
            f"at most {sum(fitting.values()) * threads}: whole cores free: {have} "
            f"(CPUs {ground.housekeeping} are kept for the host{taken})",
        )
    cells = next(_cell_counts(spec, guest_cores, len(ground.fields)))
    if sum(_cells_by_memory(spec, ground, cells).values() or (cells,)) < cells:
        return _too_much_memory(spec, ground, cells)
    have = ", ".join(f"{count} on {name}" for name, count in fitting.items())
    return PlanError(
        "memory.cells",
        f"{spec.memory.cells or 'none'}",
        f"equal cells that the nodes can hold: {guest_cores} whole cores are asked for, "
        f"free are {have}",
    )


def _too_much_memory(spec: VmSpec, ground: Ground, cells: int) -> PlanError:
    pages = pages_of(spec)
    each = f" ({cells} cells)" if cells > 1 else ""
    if pages:
        have = ", ".join(
            f"{field.pages.get(pages.in_kib, 0)} on {field}" for field in ground.fields
        )
        return PlanError(
            "memory.hugepages",
            f"{spec.memory.size // pages} pages of {pages}{each}",
            f"no more than are free: {have}",
        )
    have = ", ".join(f"{(field.memory_kib or 0) >> 10}MiB on {field}" for field in ground.fields)
    return PlanError("memory.size", f"{spec.memory.size}{each}", f"no more than there is: {have}")
