"""Contradictions between keys, which no single value shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from kvmhooks.errors import Problem
from kvmhooks.spec.agreement import disagreements
from kvmhooks.spec.enabling import unenabled
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union

_NAMES: Final = ("address", "id", "net", "block", "iommu_group", "sriov")
"""The keys that can name a device of the host."""
_FOLDERS: Final = {"memory.path"}
_SHARED: Final = {"filesystem"}
"""Of these the root may be the path."""

_ANY_NAME: Final = ", ".join(_NAMES)


def inconsistencies(spec: VmSpec, document: Mapping[str, Any] | None = None) -> Iterator[Problem]:
    """Yield what is wrong with a spec whose every value is well-formed.

    ``document`` is what it was made of, where there is one: a key that stands there may do nothing
    though it says what is so by default.
    """
    yield from unenabled(spec, document)
    yield from _files(spec, "")
    yield from _topology(spec)
    yield from _current(spec)
    if spec.run.ready == "agent" and not spec.guest.agent:
        yield Problem("run.ready", '"agent" without guest.agent', "the two together")
    yield from _placement(spec)
    yield from _memory(spec)
    yield from _cells(spec)
    yield from _pci(spec)
    yield from _mediated(spec)
    yield from disagreements(spec)


def _files(value: Any, at: str) -> Iterator[Problem]:
    """Tell of the root where a file is meant: libvirt's schema has no such file (absFilePath)."""
    if isinstance(value, Path):
        if value == value.parent and at not in _FOLDERS:
            yield Problem(at, repr(str(value)), "the path of a file")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _files(item, f"{at}[{index}]")
    elif attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            inner = f"{at}.{field.name}" if at else field.name
            if inner.partition("[")[0] not in _SHARED:
                yield from _files(getattr(value, field.name), inner)


def _mediated(spec: VmSpec) -> Iterator[Problem]:
    for index, mdev in enumerate(spec.mdev):
        if mdev.uuid is None and mdev.type is None:
            yield Problem(f"mdev[{index}]", "neither uuid nor type", "one of them")


def _current(spec: VmSpec) -> Iterator[Problem]:
    current, vcpus = spec.cpu.current, spec.cpu.vcpus
    if current is None:
        return
    if not 1 <= current <= vcpus:
        yield Problem("cpu.current", str(current), f"1 to cpu.vcpus, which is {vcpus}")
    elif current < vcpus and spec.guest.report:
        yield Problem("cpu.current", "guest.report beside it", "one of the two")


def _topology(spec: VmSpec) -> Iterator[Problem]:
    levels = {
        level: count
        for level in ("sockets", "dies", "cores", "threads")
        if (count := getattr(spec.cpu, level)) is not None
    }
    product = math.prod(levels.values())
    is_complete = {"sockets", "cores", "threads"} <= levels.keys()
    if spec.cpu.vcpus % product or (is_complete and product != spec.cpu.vcpus):
        shape = " x ".join(f"{count} {level}" for level, count in levels.items())
        times = "" if is_complete else "a multiple of "
        yield Problem("cpu.vcpus", str(spec.cpu.vcpus), f"{times}{product}: {shape}")


def _placement(spec: VmSpec) -> Iterator[Problem]:
    """Yield what is wrong with the vCPUs of a mixed VM that have a CPU each."""
    cpu = spec.cpu
    if cpu.placement == "mixed" and cpu.dedicated is None:
        yield Problem("cpu.dedicated", "nothing", "the vCPUs of a mixed VM that have a CPU each")
    if cpu.placement == "mixed" and cpu.dedicated is not None:
        every = CpuSet(range(cpu.vcpus))
        if not cpu.dedicated or not cpu.dedicated < every:
            yield Problem(
                "cpu.dedicated", repr(str(cpu.dedicated)), f"some of the vCPUs {every}, not all"
            )
        elif cpu.threads is not None:
            yield from _uncut("cpu.dedicated", cpu.dedicated, cpu.threads)


def _uncut(at: str, vcpus: CpuSet, threads: int) -> Iterator[Problem]:
    """Tell of guest cores that are partly in ``vcpus``."""
    cores = {vcpu // threads for vcpu in vcpus}
    if len(vcpus) != len(cores) * threads:
        yield Problem(at, repr(str(vcpus)), f"whole guest cores of {threads} threads")


def _memory(spec: VmSpec) -> Iterator[Problem]:
    pages = spec.memory.hugepages
    unit = 1 << 20 if not pages or pages == "auto" else pages
    cells = spec.memory.cells or 1
    if spec.memory.size == 0 or spec.memory.size % (unit * cells):
        each = f" for each of {cells} cells" if cells > 1 else ""
        whole = "1MiB" if unit == 1 << 20 else str(spec.memory.hugepages)
        yield Problem(
            "memory.size", repr(str(spec.memory.size)), f"whole multiples of {whole}{each}"
        )
    if spec.memory.nodes is not None and not spec.memory.nodes:
        yield Problem("memory.nodes", "no node", 'a list of nodes such as "0-1"')


def _cells(spec: VmSpec) -> Iterator[Problem]:
    cells = spec.memory.cell
    if not cells:
        return
    if spec.memory.cells is not None:
        yield Problem("memory.cells", "memory.cell beside it", "one of the two")
    pages = spec.memory.hugepages
    unit = 1 << 20 if not pages or pages == "auto" else pages
    for index, cell in enumerate(cells):
        at = f"memory.cell[{index}]"
        if cell.size == 0 or cell.size % unit:
            whole = "1MiB" if unit == 1 << 20 else str(pages)
            yield Problem(f"{at}.size", repr(str(cell.size)), f"whole multiples of {whole}")
        allowed = spec.memory.nodes
        if cell.node is not None and allowed is not None and cell.node not in allowed:
            yield Problem(f"{at}.node", str(cell.node), f"one of memory.nodes, {allowed}")
        if spec.cpu.threads is not None:
            yield from _uncut(f"{at}.vcpus", cell.vcpus, spec.cpu.threads)
    given = sum(cell.size for cell in cells)
    if given != spec.memory.size:
        found = f"{spec.memory.size}, but its cells have {given >> 20}MiB"
        yield Problem("memory.size", found, "the sum of its cells")
    every = CpuSet(range(spec.cpu.vcpus))
    there = union(cell.vcpus for cell in cells)
    if there != every or sum(len(cell.vcpus) for cell in cells) != len(every):
        found = f"vCPUs {', '.join(str(cell.vcpus) or 'none' for cell in cells)}"
        yield Problem("memory.cell", found, f"each of the vCPUs {every} in one cell")


def _pci(spec: VmSpec) -> Iterator[Problem]:
    for index, device in enumerate(spec.pci):
        named = [name for name in _NAMES if getattr(device, name) is not None]
        if len(named) != 1:
            yield Problem(f"pci[{index}]", " and ".join(named) or "none", f"one of {_ANY_NAME}")
        if device.sriov is not None and not device.managed:
            yield Problem(f"pci[{index}].managed", "false", "true: the function is made and bound")
        elif device.allow and not device.managed:
            expected = f"pci[{index}].managed = true: else nobody looks at the uses of it"
            yield Problem(f"pci[{index}].allow", "an array", expected)
    for at, address, first in spec.repeats():
        yield Problem(at, str(address), f"each device once: {first} names it")
