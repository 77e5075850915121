"""The memory: a backend for each guest NUMA cell, bound to its node."""

from __future__ import annotations

from kvmhooks.placement.model import Cell, Plan
from kvmhooks.render.argv.json_form import option

_POLICIES = {"strict": "bind", "preferred": "preferred"}
"""libvirt's words for QEMU's ``HostMemPolicy`` (qapi/qom.json)."""


def arguments(plan: Plan) -> list[str]:
    """The size, and for each cell its backend and its vCPUs."""
    said = ["-m", f"size={sum(cell.memory_kib for cell in plan.cells)}k"]
    for cell in plan.cells:
        said += option("object", _backend(plan, cell))
        cpus = "".join(f",cpus={run}" for run in str(cell.vcpus).split(",") if run)
        said += ["-numa", f"node,nodeid={cell.id}{cpus},memdev=ram-node{cell.id}"]
    return said


def _backend(plan: Plan, cell: Cell) -> dict[str, object]:
    """Explicit huge pages come from a memfd, which needs no mount of hugetlbfs."""
    is_huge = cell.is_huge
    node = None if cell.node is None else [cell.node]
    return {
        "qom-type": "memory-backend-memfd" if is_huge else "memory-backend-ram",
        "id": f"ram-node{cell.id}",
        "size": cell.memory_kib * 1024,
        "hugetlb": True if is_huge else None,
        "hugetlbsize": cell.page_kib * 1024 if is_huge else None,
        "prealloc": True if is_huge else None,
        "host-nodes": node,
        "policy": None if node is None else _POLICIES[plan.memory_mode],
    }
