"""The memory: a backend for each guest NUMA cell, bound to its node, and what can be added."""

from __future__ import annotations

from kvmhooks.machine.arguments import option
from kvmhooks.placement.model import Cell, Plan
from kvmhooks.placement.slots import slots_of
from kvmhooks.qemu.argv.plug import plug

_POLICIES = {"strict": "bind", "preferred": "preferred"}
"""libvirt's words for QEMU's ``HostMemPolicy`` (qapi/qom.json)."""


def arguments(plan: Plan) -> list[str]:
    """Return the size, each cell's backend and vCPUs, then the distances between cells."""
    words = ["-m", _size(plan)]
    for cell in plan.cells:
        words += _object(plan, cell, f"ram-node{cell.id}", cell.memory_kib * 1024)
        cpus = "".join(f",cpus={run}" for run in str(cell.vcpus).split(",") if run)
        words += ["-numa", f"node,nodeid={cell.id}{cpus},memdev=ram-node{cell.id}"]
    for source, row in enumerate(plan.distances):
        for destination, value in enumerate(row):
            words += ["-numa", f"dist,src={source},dst={destination},val={value}"]
    return words


def added(plan: Plan) -> list[str]:
    """Return DIMMs, and memory that grows and shrinks."""
    words: list[str] = []
    for at, dimm in enumerate(plan.spec.memory.dimm):
        words += _object(plan, plan.cells[dimm.cell], f"memdimm{at}", dimm.size, is_huge=False)
        module = {"driver": "pc-dimm", "node": dimm.cell, "memdev": f"memdimm{at}"}
        words += option("device", {**module, "id": f"dimm{at}", "slot": at})
    for at, memory in enumerate(plan.spec.memory.virtio):
        name = f"virtiomem{at}"
        cell = plan.cells[memory.cell]
        words += _object(plan, cell, f"mem{name}", memory.size, is_huge=False, is_sparse=True)
        words += option(
            "device",
            {
                **plug(plan, "virtio-mem", name),
                "node": memory.cell,
                "block-size": int(memory.block),
                "requested-size": int(
                    memory.size if memory.requested is None else memory.requested
                ),
                "memdev": f"mem{name}",
                "prealloc": True if plan.hardware.backing.prealloc else None,
            },
        )
    return words


def _size(plan: Plan) -> str:
    size = f"size={sum(cell.memory_kib for cell in plan.cells)}k"
    memory = plan.spec.memory
    if memory.maximum is None:
        return size
    return f"{size},slots={slots_of(plan)},maxmem={memory.maximum.in_kib}k"


def _object(
    plan: Plan,
    cell: Cell,
    name: str,
    size: int,
    *,
    is_huge: bool | None = None,
    is_sparse: bool = False,
) -> list[str]:
    """Return a backend, and the context of the threads that allocate it: on its own node.

    Sparse memory is not reserved and not allocated: only the guest knows what it needs of it.
    """
    memory, backing = plan.spec.memory, plan.hardware.backing
    huge = cell.is_huge if is_huge is None else is_huge
    node = None if cell.node is None else [cell.node]
    prealloc = True if backing.prealloc and not is_sparse else None
    context = None if prealloc is None or node is None else f"tc-{name}"
    hugetlb = True if huge and backing.kind == "memfd" else None
    words = []
    if context is not None:
        words += option(
            "object", {"qom-type": "thread-context", "id": context, "node-affinity": node}
        )
    return words + option(
        "object",
        {
            "qom-type": f"memory-backend-{backing.kind}",
            "id": name,
            "mem-path": str(memory.path) if backing.kind == "file" else None,
            "discard-data": True if backing.kind == "file" and memory.discard else None,
            "share": True if backing.share else None,
            "hugetlb": hugetlb,
            "hugetlbsize": cell.page_kib * 1024 if hugetlb else None,
            "prealloc": prealloc,
            "prealloc-threads": memory.prealloc_threads if prealloc else None,
            "prealloc-context": context,
            "reserve": False if is_sparse else None,
            "size": int(size),
            "host-nodes": node,
            "policy": None if node is None else _POLICIES[plan.memory_mode],
        },
    )
