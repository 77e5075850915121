"""A guest's report of itself, compared with its plan.

The guest of ``examples/guest`` prints one line of JSON on its console. Numbers that a guest's
kernel chooses by itself (package and core ids) are not compared, only who shares what with whom.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from attrs import frozen

from kvmhooks.placement.model import Plan
from kvmhooks.values import CpuSet

MARK: Final = b'{"kvmhooks-guest":1,'
"""The beginning of the line; the number is its format's version."""

MAX_BYTES: Final = 1 << 20

MEMORY_TOLERANCE_KIB: Final = 2048
"""The memory that firmware keeps of a node: the hole below 1 MiB, ACPI's tables."""


@frozen
class Difference:
    """One thing that the guest does not see as planned."""

    what: str
    planned: str
    seen: str

    def __str__(self) -> str:
        return f"{self.what}: planned {self.planned}, the guest sees {self.seen}"


class Unreadable(ValueError):
    """The guest's line is no report."""


def parse(line: bytes) -> dict[str, Any]:
    """Read the guest's line. Raises ``Unreadable``: it comes from a guest, and may be anything."""
    if not line.startswith(MARK) or len(line) > MAX_BYTES:
        raise Unreadable("found no line of kvmhooks' guest report")
    try:
        report = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"found a guest report that is no JSON: {error}") from error
    assert isinstance(report, dict)  # MARK begins an object
    return report


def compare(plan: Plan, report: dict[str, Any]) -> list[Difference]:
    """Say where what the guest saw is not what was planned. Raises ``Unreadable``."""
    try:
        return [
            Difference(what, planned, seen)
            for what, planned, seen in _facts(plan, report)
            if planned != seen
        ] + list(_memory(plan, report))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise Unreadable(f"found a guest report without {error}") from error


def _facts(plan: Plan, report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (what, planned, seen)."""
    vcpus = len(plan.vcpus)
    shape = plan.topology
    yield "vCPUs", str(vcpus), str(len(report["cpus"]))
    yield (
        "threads of a core",
        _groups(range(0, vcpus, shape.threads), shape.threads),
        _listed({CpuSet.parse(cpu["siblings"]) for cpu in report["cpus"]}),
    )
    socket = vcpus // shape.sockets
    packages: defaultdict[int, list[int]] = defaultdict(list)
    for cpu in report["cpus"]:
        packages[cpu["package"]].append(cpu["cpu"])
    yield (
        "vCPUs of a socket",
        _groups(range(0, vcpus, socket), socket),
        _listed({CpuSet(cpus) for cpus in packages.values()}),
    )
    seen = {node["node"]: str(CpuSet.parse(node["cpus"])) for node in report["nodes"]}
    planned = {cell.id: str(cell.vcpus) for cell in plan.cells}
    yield "vCPUs of each NUMA node", str(planned), str(dict(sorted(seen.items())))
    yield from _caches(plan, report)
    if plan.distances:
        rows = {node["node"]: list(node.get("distances", ())) for node in report["nodes"]}
        wanted = {cell: list(row) for cell, row in enumerate(plan.distances)}
        if all(rows.values()):
            yield "distances of the NUMA nodes", str(wanted), str(dict(sorted(rows.items())))
    yield from _disks(plan, report)
    yield from _nets(plan, report)
    if plan.spec.boot.cmdline is not None:
        yield "kernel command line", repr(plan.spec.boot.cmdline), repr(report["cmdline"])


def _caches(plan: Plan, report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield who shares an L3, where it is QEMU's own and not the host's.

    It is that of a die; QEMU 7.2 has one for a socket, whose dies are one there
    (``cpu_x86_cpuid()``, target/i386/cpu.c), so it is compared where those are the same.
    """
    shape = plan.topology
    groups = [cpu.get("l3") for cpu in report["cpus"]]
    if plan.spec.cpu.caches == "host" or shape.dies != 1 or None in groups:
        return
    socket = len(plan.vcpus) // shape.sockets
    yield (
        "vCPUs of an L3",
        _groups(range(0, len(plan.vcpus), socket), socket),
        _listed({CpuSet.parse(cpus) for cpus in groups if cpus is not None}),
    )


def _nets(plan: Plan, report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the interfaces of virtio's kind that have a driver in the guest, by their address.

    Linux uses as many pairs of queues as it has CPUs (``virtnet_probe()``,
    drivers/net/virtio_net.c).
    """
    if "nets" not in report:
        return
    seen = {net["mac"]: net for net in report["nets"]}
    for index, (net, mac) in enumerate(zip(plan.spec.net, plan.macs, strict=True)):
        if net.model != "virtio" or mac not in seen:
            continue
        queues = min(net.queues or 1, len(plan.vcpus))
        yield f"net[{index}]'s queues", str(queues), str(seen[mac]["queues"])
        if net.mtu is not None:
            yield f"net[{index}].mtu", str(net.mtu), str(seen[mac]["mtu"])


def _disks(plan: Plan, report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what is known of the disks from here: how many, and of raw images the size."""
    disks = sorted(report["disks"], key=lambda disk: (len(disk["name"]), disk["name"]))
    yield "disks", str(len(plan.spec.disk)), str(len(disks))
    for index, (disk, seen) in enumerate(zip(plan.spec.disk, disks, strict=False)):
        yield f"disk[{index}].readonly", str(disk.readonly), str(seen["readonly"])
        if disk.format == "raw" and not disk.is_block_device and disk.path.exists():
            size = disk.path.stat().st_size
            yield f"disk[{index}]'s bytes", str(size // 512 * 512), str(seen["bytes"])
        if "queues" in seen and disk.bus == "virtio-blk":
            # without a word QEMU has one for each vCPU (``virtio_pci_optimal_num_queues()``)
            queues = min(disk.queues or len(plan.vcpus), len(plan.vcpus))
            yield f"disk[{index}]'s queues", str(queues), str(seen["queues"])


def _memory(plan: Plan, report: dict[str, Any]) -> Iterator[Difference]:
    seen = {node["node"]: int(node["memory_kib"]) for node in report["nodes"]}
    for cell in plan.cells:
        missing = cell.memory_kib - seen.get(cell.id, 0)
        if not 0 <= missing <= MEMORY_TOLERANCE_KIB:
            yield Difference(
                f"memory of NUMA node {cell.id}",
                f"{cell.memory_kib} KiB",
                f"{seen.get(cell.id, 0)} KiB",
            )


def _groups(starts: range, size: int) -> str:
    return _listed({CpuSet(range(start, start + size)) for start in starts})


def _listed(groups: set[CpuSet]) -> str:
    return " ".join(str(cpus) for cpus in sorted(groups, key=CpuSet.first))
