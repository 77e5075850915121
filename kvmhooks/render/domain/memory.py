"""The memory: its size, what it is made of, and which node each guest cell gets it from."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element


def size(plan: Plan) -> list[Element]:
    """The size of all of it."""
    return [element("memory", {"unit": "KiB"}, text=sum(cell.memory_kib for cell in plan.cells))]


def elements(plan: Plan) -> list[Element]:
    """``<memoryBacking>`` for explicit huge pages and ``<numatune>`` for bound cells."""
    said = []
    if plan.cells[0].is_huge:
        page = element("page", {"size": plan.cells[0].page_kib, "unit": "KiB"})
        said.append(element("memoryBacking", children=[element("hugepages", children=[page])]))
    bound = [
        element("memnode", {"cellid": cell.id, "mode": plan.memory_mode, "nodeset": str(cell.node)})
        for cell in plan.cells
        if cell.node is not None
    ]
    if bound:
        said.append(element("numatune", children=bound))
    return said
