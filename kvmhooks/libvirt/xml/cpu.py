"""The CPU model, topology and guest NUMA cells."""

from __future__ import annotations

from kvmhooks.machine.element import Element, element, on_off
from kvmhooks.placement.model import Cell, Plan

_MODES = {"host": "host-passthrough", "max": "maximum"}
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def count(plan: Plan) -> list[Element]:
    """Return the numbers of vCPUs and iothreads."""
    count, current = len(plan.vcpus), plan.spec.cpu.current
    there = None if current == count else current
    elements = [element("vcpu", {"placement": "static", "current": there}, text=count)]
    if plan.iothreads:
        ids = [element("iothread", {"id": iothread.id}) for iothread in plan.iothreads]
        elements.append(element("iothreads", text=len(ids)))
        elements.append(element("iothreadids", children=ids))
    return elements


def elements(plan: Plan) -> list[Element]:
    """Return ``<cpu>``; no ``clusters``, which x86 machines refuse (hw/i386/pc.c)."""
    shape = plan.topology
    levels = {level: getattr(shape, level) for level in ("sockets", "dies", "cores", "threads")}
    children = [
        element("topology", levels),
        *_caches(plan),
        *(
            element(
                "feature",
                {"policy": "require" if feature[0] == "+" else "disable", "name": feature[1:]},
            )
            for feature in plan.cpu.features
        ),
        element("numa", children=[_cell(plan, cell) for cell in plan.cells]),
    ]
    migratable = plan.hardware.interface.migratable
    mode = _MODES.get(plan.cpu.model)
    if mode is not None:
        flag = None if migratable is None else on_off(migratable)
        return [element("cpu", {"mode": mode, "check": "none", "migratable": flag}, children)]
    model = element("model", {"fallback": "forbid"}, text=plan.cpu.model)
    attributes = {"mode": "custom", "match": "exact", "check": "none"}
    return [element("cpu", attributes, [model, *children])]


def _caches(plan: Plan) -> list[Element]:
    host = plan.hardware.interface.host_caches
    if host is None:
        return []
    return [element("cache", {"mode": "passthrough"} if host else {"level": 3, "mode": "emulate"})]


def _cell(plan: Plan, cell: Cell) -> Element:
    attributes = {
        "id": cell.id,
        "cpus": str(cell.vcpus) or None,
        "memory": cell.memory_kib,
        "unit": "KiB",
        "memAccess": "shared" if plan.hardware.backing.share else None,
    }
    if not plan.distances:
        return element("cell", attributes)
    siblings = [
        element("sibling", {"id": other, "value": value})
        for other, value in enumerate(plan.distances[cell.id])
    ]
    return element("cell", attributes, [element("distances", children=siblings)])


def overrides(plan: Plan) -> list[Element]:
    """Return what libvirt has no element for: a vendor not the model's own, and idle states.

    libvirt writes ``vendor_id`` for named models only, and QEMU's ``max`` is none to it
    (``qemuBuildCpuModelArgStr()``, src/qemu/qemu_command.c; seen with 9.0), so QEMU is told by a
    property of the CPU's class.
    """
    words = []
    if plan.cpu.vendor is not None:
        words += ["-global", f"{plan.cpu.model}-x86_64-cpu.vendor={plan.cpu.vendor}"]
    if plan.hardware.interface.cpu_pm:
        words += ["-overcommit", "cpu-pm=on"]
    if not words:
        return []
    arguments = [element(f"{{{_QEMU}}}arg", {"value": value}) for value in words]
    names = {"qemu": _QEMU}
    return [element(f"{{{_QEMU}}}commandline", {}, arguments, namespaces=names)]
