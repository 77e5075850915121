"""Improvements of the memory: the nodes that it comes from, and giving back what is free."""

from __future__ import annotations

from kvmhooks.libvirt.edit.editor import New
from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.cpu import cpu_set
from kvmhooks.libvirt.tuning.situation import Situation
from kvmhooks.placement.model import Cell, Plan
from kvmhooks.values import CpuSet, union


def cells(situation: Situation) -> None:
    """Add a guest cell for each host node that a VM without cells is spread over."""
    root = situation.root
    if root.find("cpu/numa") is not None or situation.kept_pins or situation.stays:
        return
    plan = situation.plan
    if len(plan.cells) < 2:
        return
    if root.find("maxMemory") is not None or not situation.editor.children(root, "cpu"):
        return
    why = "the guest keeps its programs and their memory on one node"
    numa = New("numa")
    for cell in plan.cells:
        attributes = {"id": str(cell.id), "cpus": str(cell.vcpus), "memory": str(cell.memory_kib)}
        numa.children.append(New("cell", {**attributes, "unit": "KiB"}, _distances(plan, cell.id)))
    situation.editor.add(situation.child("cpu", why), numa, why)


def _distances(plan: Plan, cell: int) -> list[New]:
    """Return how far a cell is from each, as its host node is."""
    if not plan.distances:
        return []
    distances = [
        New("sibling", {"id": str(other), "value": str(value)})
        for other, value in enumerate(plan.distances[cell])
    ]
    return [New("distances", children=distances)]


def nodes(situation: Situation) -> None:
    """Bind the memory of each guest cell, or of the whole guest, to the node of its vCPUs.

    A host with one node has no choice; ``<numatune>`` for it would only be in the way of a move.
    """
    if len(situation.host.nodes or ()) < 2 or situation.stays:
        return
    where = _nodes_by_cell(situation)
    if not where or None in where.values():
        return
    root, editor, plan = situation.root, situation.editor, situation.plan
    why = "memory of the vCPUs' own node"
    numa = [found for cpu in editor.children(root, "cpu") for found in editor.children(cpu, "numa")]
    memory = root.find("numatune/memory")
    every = union(nodes for nodes in where.values() if nodes is not None)
    if memory is not None:
        _whole(situation, memory, every, why)
    if not numa:
        if memory is None and len(every) == 1:
            attributes = {"mode": plan.memory_mode, "nodeset": str(every)}
            editor.add(situation.child("numatune", why), New("memory", attributes), why)
        return
    present = {each.get("cellid"): each for each in root.all("numatune/memnode")}
    for cell, nodeset in where.items():
        found = present.get(str(cell))
        if found is None:
            mode = plan.memory_mode if memory is None else memory.get("mode", "strict")
            attributes = {"cellid": str(cell), "mode": mode, "nodeset": str(nodeset)}
            editor.add(situation.child("numatune", why), New("memnode", attributes), why)
        elif cpu_set(found, "nodeset") != nodeset and not situation.keep_pins:
            editor.set(found, "nodeset", str(nodeset), why)


def _whole(situation: Situation, memory: Element, every: CpuSet, why: str) -> None:
    """Tune ``<memory>``, the guest's memory as a whole, besides its cells."""
    if situation.keep_pins and memory.get("placement") != "auto":
        return
    if memory.get("placement") == "auto":
        situation.editor.set(memory, "placement", "static", "numad knows nothing of the pins")
    elif memory.get("nodeset") is None:
        return
    if memory.get("mode", "strict") == "preferred" and len(every) > 1:
        return  # libvirt takes one node there (``virDomainNumatuneSet()``)
    if memory.get("nodeset") is None or cpu_set(memory, "nodeset") != every:
        situation.editor.set(memory, "nodeset", str(every), why)


def _nodes_by_cell(situation: Situation) -> dict[int, CpuSet | None]:
    """Return the host nodes of each guest cell: of its pins if those are kept, else as planned."""
    cells: tuple[Cell, ...] = situation.plan.cells
    if situation.kept_pins:
        by_cell = {}
        for cell in cells:
            cpus = [situation.kept_pins.get(vcpu) for vcpu in cell.vcpus]
            known = [each for each in cpus if each is not None]
            whole = union(known) if len(known) == len(cpus) else CpuSet()
            nodes = situation.nodes_of(whole)
            by_cell[cell.id] = nodes if nodes is not None and len(nodes) == 1 else None
        return by_cell
    return {
        cell.id: None if cell.node is None else CpuSet((cell.node,))
        for cell in situation.plan.cells
    }


def balloon(situation: Situation) -> None:
    """Have free pages of the guest go back to the host (QEMU 5.1, libvirt 6.9).

    Not with huge pages, locked memory or devices that hold all of it (VFIO): there it cannot work.
    """
    root, wished = situation.root, situation.spec.memory
    if situation.is_own:
        return
    if root.find("memoryBacking/hugepages") is not None or root.find("devices/hostdev") is not None:
        return
    if wished.hugepages or wished.locked:  # of a profile
        return
    if root.find("memoryBacking/locked") is not None:
        return
    for element in situation.devices("memballoon"):
        if element.get("model", "").startswith("virtio") and (
            element.get("freePageReporting") is None
        ):
            why = "the guest's free pages go back to the host"
            situation.editor.set(element, "freePageReporting", "on", why)
