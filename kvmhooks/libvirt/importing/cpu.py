"""The vCPUs, their model and topology, and the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvmhooks.errors import Problem, SpecError, ValueFormatError
from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.amounts import amount, size_of
from kvmhooks.libvirt.importing.memory_devices import memory_devices
from kvmhooks.libvirt.importing.reading import Reading
from kvmhooks.machine.domain_reading import Tables, fits, number
from kvmhooks.placement.slots import DEFAULT
from kvmhooks.policy import NAMESPACE
from kvmhooks.spec.model import CpuFeature, CpuModel
from kvmhooks.values import ByteSize, CpuSet, union

_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
_MODES: Final = {"host-passthrough": "host", "maximum": "max"}
_MIB: Final = 1 << 20

KNOWN_PAGES: Final = frozenset({2 << 20, 1 << 30})
"""The sizes of huge pages that ``vm.toml`` knows, in bytes."""

MOST_VCPUS: Final = 65_535
"""``countCPU`` of libvirt's schema (schemas/domaincommon.rng), an ``unsignedShort``; more than any
machine of QEMU has (``machine.topology``). The reader itself takes 32 bits, and as much memory as
it needs for them (``virDomainVcpuParse()``, src/conf/domain_conf.c)."""


def cpu(reading: Reading) -> Tables:
    """Return how many vCPUs there are, where they run, what they are."""
    root = reading.root
    reading.find("vcpu", "placement")
    count = vcpus_of(root)
    table: Tables = {"vcpus": count}
    element = root.find("vcpu")
    if element is not None:
        reading.decide_attribute(element, "cpuset", "the plan chooses the CPUs")
        reading.read(element, "current")
        if element.get("current") not in {None, str(count)}:
            table["current"] = number(element.get("current") or "", "vcpu@current")
    if is_dedicated(root, count) or wants_exclusive(root):
        table["placement"] = "dedicated"
    _pins(reading)
    for name in ("iothreads", "iothreadids"):
        element = root.find(name)
        if element is not None:
            reading.decide(element, name, "as many as the disks name")
    pmu = root.find("features/pmu")
    if pmu is not None and pmu.get("state") in {"on", "off"}:
        reading.read(pmu, "state")
        table["pmu"] = pmu.get("state") == "on"
    table |= _model(reading)
    table |= _topology(reading)
    return {"cpu": table}


def vcpus_of(root: Element) -> int:
    """Return how many vCPUs a domain has at most. Raises ``SpecError`` for more than any has."""
    element = root.find("vcpu")
    text = "" if element is None else element.text.strip()
    count = number(text or "1", "vcpu")
    if count > MOST_VCPUS:
        problem = Problem("vcpu", repr(text), f"a whole number from 1 to {MOST_VCPUS}")
        raise SpecError("domain", (problem,))
    return count


def is_dedicated(root: Element, vcpus: int) -> bool:
    """Return whether each vCPU is pinned to its own CPU, where not the whole emulator runs too.

    Shared vCPUs, one for each of the few CPUs that there are, share them with the emulator.
    """
    pins = vcpu_pins(root)
    singles = {pins[vcpu] for vcpu in range(vcpus) if len(pins.get(vcpu, ())) == 1}
    emulator = root.find("cputune/emulatorpin")
    others = CpuSet() if emulator is None else cpu_set(emulator, "cpuset")
    return len(singles) == vcpus and not union(singles) <= others


def wants_exclusive(root: Element) -> bool:
    """Return whether kvmhooks' metadata asks for CPUs of the VM's own."""
    policy = root.find(f"metadata/{{{NAMESPACE}}}vm/{{{NAMESPACE}}}isolation")
    return policy is not None and policy.get("exclusive") == "yes"


def vcpu_pins(root: Element) -> dict[int, CpuSet]:
    """Return the CPUs of each vCPU that has a pin. Raises ``SpecError`` for a pin that is none."""
    return {
        number(pin.get("vcpu") or "", f"{pin.path}@vcpu"): cpu_set(pin, "cpuset")
        for pin in root.all("cputune/vcpupin")
    }


def cpu_set(element: Element, name: str) -> CpuSet:
    """Return a set of CPUs or nodes. Raises ``SpecError`` with its place."""
    text = element.get(name) or ""
    try:
        return CpuSet.parse(text)
    except ValueFormatError as error:
        problem = Problem(f"{element.path}@{name}", repr(text[:80]), error.expected)
        raise SpecError("domain", (problem,)) from error


def _pins(reading: Reading) -> None:
    cputune = reading.find("cputune")
    for child in [] if cputune is None else cputune.children:
        if child.tag in {"vcpupin", "emulatorpin", "iothreadpin"}:
            reading.decide(child, f"cputune/{child.tag}", "the plan chooses the CPUs")


def _model(reading: Reading) -> Tables:
    element = reading.find("cpu", "mode")
    if element is None:
        # QEMU's default of x86 (``pc_machine_class_init()``, hw/i386/pc.c).
        return {"model": "qemu64"}
    reading.expect(element, {"check": "none"})
    mode = element.get("mode", "custom")
    model = reading.text("cpu/model")
    table: Tables = {"model": "host"}
    if mode in _MODES:
        table["model"] = _MODES[mode]
    elif mode == "custom" and fits(CpuModel, model):
        table["model"] = model
        child = element.find("model")
        reading.expect(element, {"match": "exact"})
        if child is not None:
            reading.expect(child, {"fallback": "forbid"}, child.text.strip())
    elif mode == "custom" and model is None:
        table["model"] = "qemu64"
    else:
        reading.leave_attribute(element, "mode", f'found {mode!r}: "host" is the nearest')
    features = [text for child in element.all("feature") if (text := _feature(reading, child))]
    if features:
        table["features"] = features
    _vendor(reading, table["model"])
    return table


def _feature(reading: Reading, element: Element) -> str | None:
    sign = {"require": "+", "force": "+", "disable": "-"}.get(element.get("policy", ""))
    name = f"{sign or '+'}{element.get('name')}"
    if sign is None or not fits(CpuFeature, name):
        return None  # «optional» and «forbid» ask the host: told as not expressed
    reading.read(element, "policy", "name")
    return name


def _vendor(reading: Reading, model: str) -> None:
    """Note the vendor that kvmhooks gives to TCG's CPU through QEMU's command line."""
    commandline = reading.root.find(f"{{{_QEMU}}}commandline")
    if commandline is None:
        return
    values = [child.get("value") or "" for child in commandline.children]
    if values == ["-global", f"{model}-x86_64-cpu.vendor=GenuineIntel"]:
        reading.decide(commandline, "qemu:commandline", "the vendor follows from the threads")
    else:
        reading.leave(commandline, "QEMU's own options are not copied")


def _topology(reading: Reading) -> Tables:
    element = reading.find("cpu/topology", "sockets", "dies", "cores", "threads")
    if element is None:
        return {}
    reading.expect(element, {"clusters": "1"})
    return {
        level: number(element.get(level) or "", f"{element.path}@{level}")
        for level in ("sockets", "dies", "cores", "threads")
        if element.get(level) is not None
    }


def memory(reading: Reading) -> Tables:
    """Return the size, the guest's NUMA cells and the pages."""
    root = reading.root
    size = size_of(reading.find("memory", "unit"))
    current = root.find("currentMemory")
    if current is not None:
        if size_of(current) == size:
            reading.read(current, "unit")
        else:
            reading.leave(current, "the guest has all its memory from the start")
    cells = list(root.all("cpu/numa/cell"))
    table: Tables = {}
    shares = [_cell(reading, cell) for cell in cells]
    pages = _pages(reading, [share for _, share in shares])
    if cells:
        size = sum(share for _, share in shares)
        reading.find("cpu/numa")
    if _are_alike(shares):
        if len(cells) > 1 or (cells and root.find("numatune") is not None):
            table["cells"] = len(cells)  # a single one that is bound to no node promises nothing
    else:
        whole = max(pages or 0, _MIB)
        rounded = [(vcpus, -(-share // whole) * whole or whole) for vcpus, share in shares]
        if rounded != shares:
            root_cells = cells[0].parent
            assert root_cells is not None  # <numa>
            reading.leave(root_cells, "cells of whole MiB or pages are known: they have more")
        table["cell"] = [
            {"vcpus": str(vcpus), "size": str(ByteSize(share))} for vcpus, share in rounded
        ]
        size = sum(share for _, share in rounded)
    whole = max(pages or 0, _MIB) * int(table.get("cells", 1))
    if size % whole or not size:
        more = (size // whole + 1) * whole
        reading.leave(root.find("memory") or root, f"found {size} bytes: {ByteSize(more)}")
        size = more
    table["size"] = str(ByteSize(size))
    if pages:
        table["hugepages"] = str(ByteSize(pages))
    numatune = root.find("numatune")
    if numatune is not None:
        reading.decide(numatune, "numatune", "the plan chooses the nodes")
    return {"memory": table | _growth(reading)}


def _growth(reading: Reading) -> Tables:
    """Return how far the memory may grow, by how many modules, and what is added already."""
    maximum = reading.find("maxMemory", "unit", "slots")
    if maximum is None:
        return {}
    slots = number(maximum.get("slots", str(DEFAULT)), f"{maximum.path}@slots")
    table: Tables = {"maximum": str(ByteSize(size_of(maximum)))}
    if slots != DEFAULT:
        table["slots"] = slots
    return table | memory_devices(reading)


def _cell(reading: Reading, cell: Element) -> tuple[CpuSet, int]:
    """Return the vCPUs and the bytes of one cell."""
    reading.read(cell, "id", "cpus", "memory", "unit")
    for child in cell.all("distances"):
        reading.decide(child, "cpu/numa/cell/distances", "they are those of the nodes")
    vcpus = cpu_set(cell, "cpus") if cell.get("cpus") else CpuSet()
    return vcpus, amount(cell, cell.get("memory") or "", cell.get("unit") or "KiB")


def _are_alike(cells: Sequence[tuple[CpuSet, int]]) -> bool:
    """Return whether cells are equal, their vCPUs in order: the plan makes such by itself."""
    each = len(cells[0][0]) if cells else 0
    return all(
        size == cells[0][1] and vcpus == CpuSet(range(at * each, (at + 1) * each))
        for at, (vcpus, size) in enumerate(cells)
    )


def _pages(reading: Reading, cells: Sequence[int]) -> int | None:
    """Return the size of the pages; None for ordinary ones, and where not all cells have those.

    Raises ``SpecError`` for pages that are larger than their cell: QEMU refuses it
    (``file_ram_alloc()`` of its physmem.c).
    """
    backing = reading.find("memoryBacking")
    huge = None if backing is None else reading.find("memoryBacking/hugepages")
    if huge is None:
        return None
    by_cell = pages_by_cell(reading.root, max(len(cells), 1))
    for at, (size, share) in enumerate(zip(by_cell, cells, strict=False)):
        if size and 0 < share < size:
            found = f"pages of {ByteSize(size)} for cell {at}, which is {ByteSize(share)}"
            problem = Problem(huge.path, found, "pages that are no larger than their cell")
            raise SpecError("domain", (problem,))
    size = by_cell[0]
    if len(set(by_cell)) > 1:
        told = ", ".join(
            f"cell {at}: {ByteSize(each) if each else 'ordinary'}"
            for at, each in enumerate(by_cell)
        )
        reading.leave(huge, f"found pages of several sizes ({told}): one for all cells is known")
        return None
    if size not in KNOWN_PAGES:
        reading.leave(huge, f"found pages of {size} bytes: 2MiB and 1GiB are known")
        return None
    for page in huge.all("page"):
        reading.read(page, "size", "unit", "nodeset")
    return size


def pages_by_cell(root: Element, cells: int) -> list[int]:
    """Return the page size of each guest cell in bytes, 0 for ordinary pages.

    ``nodeset`` names guest cells; a ``<page>`` without it is that of all others
    (https://libvirt.org/formatdomain.html#memory-backing).
    """
    huge = root.find("memoryBacking/hugepages")
    pages = [] if huge is None else list(huge.all("page"))
    # Without <page>: the kernel's default size on x86, unless its command line says another.
    default = 2 * _MIB if huge is not None and not pages else 0
    named: dict[int, int] = {}
    for page in pages:
        size = amount(page, page.get("size") or "", page.get("unit") or "KiB")
        if page.get("nodeset") is None:
            default = size
        else:
            named |= dict.fromkeys(cpu_set(page, "nodeset"), size)
    return [named.get(cell, default) for cell in range(cells)]
