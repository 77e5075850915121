"""The guest's cells: the node, the vCPUs and the pages of each, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvmhooks.placement.model import ORDINARY_PAGE_KIB, Cell, Plan
from kvmhooks.placement.request import MIB
from kvmhooks.placement.search.capacity import Capacity, NodeCapacity
from kvmhooks.placement.search.choose import Choice
from kvmhooks.placement.search.evaluate import Placed

SAME_NODE_DISTANCE: Final = 11
"""Between guest cells on one host node: Linux takes no 10 but for a node itself
(``slit_valid()``, drivers/acpi/numa/srat.c)."""


def cells_of(choice: Choice) -> tuple[Cell, ...]:
    """Return the cells of what was chosen."""
    request, assignment = choice.request, choice.assignment
    is_huge = request.page_kib > ORDINARY_PAGE_KIB
    left = {
        node.index: node.pages.get(request.page_kib, 0) if is_huge else 0
        for node in assignment.numa_nodes
    }
    made = []
    for index, (cell, node) in enumerate(zip(assignment.cells, assignment.numa_nodes, strict=True)):
        missing = max(cell.units - left[node.index], 0) if is_huge else 0
        left[node.index] -= cell.units - missing
        made.append(
            Cell(
                id=index,
                node=node.node,
                vcpus=cell.vcpus,
                memory_kib=cell.units * request.unit_kib,
                page_kib=request.page_kib,
                allocate=missing,
            )
        )
    return tuple(made)


def distances_of(numa_nodes: Sequence[NodeCapacity]) -> tuple[tuple[int, ...], ...]:
    """Return the distances from each cell to each; empty for a single one."""
    if len(numa_nodes) == 1:
        return ()
    return tuple(
        tuple(
            10
            if at == other
            else SAME_NODE_DISTANCE
            if node is two
            else max(node.distances[two.index], SAME_NODE_DISTANCE)
            for other, two in enumerate(numa_nodes)
        )
        for at, node in enumerate(numa_nodes)
    )


def placed_of(current: Plan, capacity: Capacity) -> Placed | None:
    """Return the placement as it is; None when a node of it is gone."""
    site_of = {node.node: node for node in capacity.numa_nodes}
    if any(cell.node not in site_of for cell in current.cells):
        return None
    if not all(pin.cpus <= capacity.online for pin in current.vcpus):
        return None
    page_kib = current.cells[0].page_kib
    unit = page_kib if page_kib > ORDINARY_PAGE_KIB else MIB
    return Placed(
        vcpus={pin.vcpu: pin.cpus for pin in current.vcpus},
        threads=current.topology.threads,
        page_kib=page_kib,
        cells=tuple(
            (cell.vcpus, cell.memory_kib // unit, site_of[cell.node]) for cell in current.cells
        ),
    )
