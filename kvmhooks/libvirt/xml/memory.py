"""The memory: its size, what it is made of, and which node each guest cell gets it from."""

from __future__ import annotations

from kvmhooks.libvirt.xml.pci import address_of
from kvmhooks.machine.element import Element, element
from kvmhooks.placement.model import Plan
from kvmhooks.placement.slots import slots_of
from kvmhooks.values import ByteSize


def size(plan: Plan) -> list[Element]:
    """Return the size of all of it, DIMMs and what can grow included, and its maximum."""
    memory = plan.spec.memory
    added = sum(int(dimm.size) for dimm in memory.dimm)
    added += sum(int(growing.size) for growing in memory.virtio)
    total = sum(cell.memory_kib for cell in plan.cells) + added // 1024
    elements = [element("memory", {"unit": "KiB"}, text=total)]
    if memory.maximum is not None:
        attributes = {"unit": "KiB", "slots": slots_of(plan)}
        elements.insert(0, element("maxMemory", attributes, text=memory.maximum.in_kib))
    return elements


def elements(plan: Plan) -> list[Element]:
    """Return ``<memoryBacking>``, and ``<numatune>`` for bound cells."""
    elements = []
    backing = _backing(plan)
    if backing:
        elements.append(element("memoryBacking", children=backing))
    bound = [
        element("memnode", {"cellid": cell.id, "mode": plan.memory_mode, "nodeset": str(cell.node)})
        for cell in plan.cells
        if cell.node is not None
    ]
    if bound:
        elements.append(element("numatune", children=bound))
    return elements


def _backing(plan: Plan) -> list[Element]:
    memory, backing = plan.spec.memory, plan.hardware.backing
    elements = []
    pages: dict[int, list[int]] = {}
    for cell in plan.cells:
        if cell.is_huge:
            pages.setdefault(cell.page_kib, []).append(cell.id)
    if pages:
        every = len(pages) == 1 and all(cell.is_huge for cell in plan.cells)
        elements.append(
            element(
                "hugepages",
                children=[
                    element(
                        "page",
                        {
                            "size": size_kib,
                            "unit": "KiB",
                            "nodeset": None if every else ",".join(map(str, cells)),
                        },
                    )
                    for size_kib, cells in pages.items()
                ],
            )
        )
    if not memory.merge:
        elements.append(element("nosharepages"))
    if memory.locked:
        elements.append(element("locked"))
    if backing.kind != "ram":
        elements.append(element("source", {"type": backing.kind}))
    if backing.share:
        elements.append(element("access", {"mode": "shared"}))
    if backing.prealloc:
        elements.append(
            element("allocation", {"mode": "immediate", "threads": memory.prealloc_threads})
        )
    if memory.discard:
        elements.append(element("discard"))
    return elements


def devices(plan: Plan) -> list[Element]:
    """Return DIMMs, and memory that grows and shrinks."""
    elements = []
    for dimm in plan.spec.memory.dimm:
        target = element("target", children=[_kib("size", dimm.size), _node(dimm.cell)])
        elements.append(element("memory", {"model": "dimm"}, [*_source(plan, dimm.cell), target]))
    for at, memory in enumerate(plan.spec.memory.virtio):
        children = [
            _kib("size", memory.size),
            _node(memory.cell),
            _kib("block", memory.block),
            _kib("requested", memory.size if memory.requested is None else memory.requested),
        ]
        target = element("target", children=children)
        parts = [*_source(plan, memory.cell), target, address_of(plan, f"virtiomem{at}")]
        elements.append(element("memory", {"model": "virtio-mem"}, parts))
    return elements


def _source(plan: Plan, cell: int) -> list[Element]:
    """Return ordinary pages from the cell's node, also where the cell has huge ones."""
    node = plan.cells[cell].node
    children = [] if node is None else [element("nodemask", text=node)]
    if plan.cells[cell].is_huge:
        children.append(element("pagesize", {"unit": "KiB"}, text=4))
    return [element("source", children=children)] if children else []


def _node(cell: int) -> Element:
    return element("node", text=cell)


def _kib(tag: str, amount: ByteSize) -> Element:
    return element(tag, {"unit": "KiB"}, text=amount.in_kib)
