"""The CPU model, topology and guest NUMA cells."""

from __future__ import annotations

from lxml import etree

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element

_MODES = {"host": "host-passthrough", "max": "maximum"}
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def count(plan: Plan) -> list[Element]:
    """How many vCPUs and iothreads."""
    said = [element("vcpu", {"placement": "static"}, text=len(plan.vcpus))]
    if plan.iothreads:
        ids = [element("iothread", {"id": iothread.id}) for iothread in plan.iothreads]
        said.append(element("iothreads", text=len(ids)))
        said.append(element("iothreadids", children=ids))
    return said


def elements(plan: Plan) -> list[Element]:
    """``<cpu>``; no ``clusters``, which x86 machines refuse (hw/i386/pc.c)."""
    shape = plan.topology
    children = [
        element(
            "topology",
            {
                "sockets": shape.sockets,
                "dies": shape.dies,
                "cores": shape.cores,
                "threads": shape.threads,
            },
        ),
        *(
            element(
                "feature",
                {"policy": "require" if feature[0] == "+" else "disable", "name": feature[1:]},
            )
            for feature in plan.cpu.features
        ),
        element(
            "numa",
            children=[
                element(
                    "cell",
                    {
                        "id": cell.id,
                        "cpus": str(cell.vcpus) or None,
                        "memory": cell.memory_kib,
                        "unit": "KiB",
                    },
                )
                for cell in plan.cells
            ],
        ),
    ]
    mode = _MODES.get(plan.cpu.model)
    if mode is not None:
        return [element("cpu", {"mode": mode, "check": "none"}, children)]
    model = element("model", {"fallback": "forbid"}, text=plan.cpu.model)
    attributes = {"mode": "custom", "match": "exact", "check": "none"}
    return [element("cpu", attributes, [model, *children])]


def overrides(plan: Plan) -> list[Element]:
    """A vendor other than the model's own.

    libvirt writes ``vendor_id`` for named models only, and QEMU's ``max`` is none to it
    (``qemuBuildCpuModelArgStr()``, src/qemu/qemu_command.c; seen with 9.0), so QEMU is told by a
    property of the CPU's class.
    """
    if plan.cpu.vendor is None:
        return []
    commandline = etree.Element(f"{{{_QEMU}}}commandline", nsmap={"qemu": _QEMU})
    for value in ("-global", f"{plan.cpu.model}-x86_64-cpu.vendor={plan.cpu.vendor}"):
        etree.SubElement(commandline, f"{{{_QEMU}}}arg", {"value": value})
    return [commandline]
