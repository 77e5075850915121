"""A host as text for a person: what it is, then a table for each node."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from kvmhooks.host.nesting import cache_size
from kvmhooks.values import CpuSet
from kvmhooks.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kvmhooks.host.bus.devices import Irq, PciDevice
    from kvmhooks.host.model import Cache, Host, HugePages, Node

WIDTH: Final = 100

_CLASSES: Final = {
    "01": "storage",
    "02": "network",
    "03": "display",
    "04": "multimedia",
    "06": "bridge",
    "08": "system",
    "0b": "processor",
    "0c": "serial bus",
    "12": "accelerator",
}
"""The base classes that matter to VMs (include/linux/pci_ids.h)."""

_QUIET: Final = frozenset({"06"})
"""Bridges are in nobody's way; they stay out of the table."""


def picture(host: Host) -> str:
    """Draw everything that was read."""
    lines = [*_head(host)]
    for node in host.nodes or ():
        lines += ["", *_node(host, node)]
    if host.nodes is None and host.cpus is not None:
        lines += ["", *_placeless(host)]
    elsewhere = [device for device in host.pci or () if device.node is None]
    if host.nodes and _shown(elsewhere):
        lines += ["", "devices without a node", *_devices(elsewhere)]
    if host.warnings:
        lines += ["", "warnings", *(f"  {warning}" for warning in host.warnings)]
    return "\n".join(lines) + "\n"


def size(kib: int | None) -> str:
    """Write a size in the largest unit that leaves no more than three digits before the point."""
    if kib is None:
        return "?"
    for unit, factor in (("TiB", 1 << 30), ("GiB", 1 << 20), ("MiB", 1 << 10)):
        if kib >= factor:
            return f"{kib / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{kib} KiB"


def _head(host: Host) -> Iterator[str]:
    processor = host.processor.model_name if host.processor is not None else None
    release = host.kernel.release if host.kernel is not None else None
    yield ", ".join(filter(None, (processor, release and f"Linux {release}"))) or "a host"
    yield _counts(host)
    for name, cpus in _special(host):
        if cpus:
            yield f"{name + ':':<10} {cpus}"
    yield f"{'KVM:':<10} {_kvm(host)}"
    if host.cgroup is not None:
        systemd = {True: "systemd", False: "no systemd", None: "?"}[host.cgroup.systemd]
        version = "?" if host.cgroup.version is None else f"v{host.cgroup.version}"
        yield f"{'cgroups:':<10} {version} {host.cgroup.mode or ''}, {systemd}"
    if host.resctrl is not None and host.resctrl.mounted:
        yield f"{'resctrl:':<10} {_resctrl(host)}"


def _counts(host: Host) -> str:
    online = [cpu for cpu in host.cpus or () if cpu.online]
    cores = {cpu.siblings for cpu in online}
    packages = {cpu.package for cpu in online} - {None}
    memory = host.memory.total_kib if host.memory is not None else None
    nodes = "no NUMA" if host.nodes is None else counted(len(host.nodes), "node")
    parts = (counted(len(packages), "package"), nodes, counted(len(cores), "core"))
    told = [] if memory is None else [f"{size(memory)} of memory"]
    return ", ".join([*parts, counted(len(online), "CPU"), *told])


def _special(host: Host) -> Iterator[tuple[str, CpuSet]]:
    """Yield sets of CPUs that a plan must know of."""
    cpus = host.cpus or ()
    yield "offline", CpuSet(cpu.id for cpu in cpus if cpu.online is False)
    yield "isolated", CpuSet(cpu.id for cpu in cpus if cpu.isolated)
    yield "nohz_full", CpuSet(cpu.id for cpu in cpus if cpu.nohz_full)
    yield "efficient", CpuSet(cpu.id for cpu in cpus if cpu.kind == "efficiency")


def _kvm(host: Host) -> str:
    if host.kvm is None or host.kvm.available is None:
        return "not known"
    features = host.features
    can = [
        name
        for name, has in (
            ("nested", features and features.nested),
            ("APICv/AVIC", features and features.apic_virtualisation),
            ("IOMMU", features and features.iommu),
            ("posted interrupts", features and features.posted_interrupts),
            ("SEV", features and features.sev),
            ("SEV-SNP", features and features.sev_snp),
            ("TDX", features and features.tdx),
            ("SR-IOV", features and features.sriov),
        )
        if has
    ]
    usable = "usable" if host.kvm.available else "cannot be used"
    return ", ".join([f"{usable} ({host.kvm.vendor or '?'})", *can])


def _resctrl(host: Host) -> str:
    assert host.resctrl is not None
    ways = [f"{cache.resource} {cache.ways} ways" for cache in host.resctrl.caches]
    bandwidth = ["memory bandwidth"] if host.resctrl.bandwidth is not None else []
    free = "?" if host.resctrl.free_classes is None else str(host.resctrl.free_classes)
    return ", ".join([*ways, *bandwidth, f"{free} classes free"])


def _node(host: Host, node: Node) -> Iterator[str]:
    distances = " ".join(map(str, node.distances or ()))
    yield f"node {node.id}: {_memory(node.memory_kib, node.free_kib)}" + (
        f", distances {distances}" if distances else ""
    )
    yield from _pools(node.hugepages)
    yield from _cores(host, (node.cpus or CpuSet()) & host.online)
    yield from _devices(device for device in host.pci or () if device.node == node.id)
    yield from _interrupts(host, node.cpus or CpuSet())


def _placeless(host: Host) -> Iterator[str]:
    """Yield the one table of a kernel without nodes."""
    memory = host.memory
    total, free = (memory.total_kib, memory.free_kib) if memory is not None else (None, None)
    yield f"no nodes: {_memory(total, free)}"
    yield from _pools(memory.hugepages if memory is not None else None)
    yield from _cores(host, host.online)
    yield from _devices(host.pci or ())
    yield from _interrupts(host, host.online)


def _memory(total: int | None, free: int | None) -> str:
    return "memory not known" if total is None else f"{size(total)}, {size(free)} free"


def _pools(pools: Sequence[HugePages] | None) -> Iterator[str]:
    used = [pool for pool in pools or () if pool.total]
    if used:
        texts = (f"{size(pool.size_kib)}: {pool.free} of {pool.total} free" for pool in used)
        yield f"  {'huge pages':<12} {', '.join(texts)}"


def _cores(host: Host, cpus: CpuSet) -> Iterator[str]:
    """Yield one row for each L3, or for all where there is none, with the cores as siblings."""
    if not cpus:
        yield "  no CPUs: memory only"
        return
    caches: list[Cache | None] = [
        cache for cache in host.caches or () if cache.level == 3 and not cpus.isdisjoint(cache.cpus)
    ]
    known = CpuSet(cpu for cache in caches if cache is not None for cpu in cache.cpus)
    if cpus - known:
        caches.append(None)
    for cache in caches:
        served = cpus - known if cache is None else cpus & cache.cpus
        name = "no L3" if cache is None else f"L3 {cache_size(cache.size_kib)}".strip()
        cores = dict.fromkeys(str(host.core_of(cpu)) for cpu in served)
        yield from _row(name, f"{counted(len(cores), 'core')}: {'  '.join(cores)}")


def _row(name: str, text: str) -> Iterator[str]:
    indent = " " * 15
    lines = textwrap.wrap(text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
    yield f"  {name:<12} {lines[0] if lines else ''}"
    yield from (indent + line for line in lines[1:])


def _shown(devices: Iterable[PciDevice]) -> list[PciDevice]:
    return [device for device in devices if (device.class_ or "")[2:4] not in _QUIET]


def _devices(devices: Iterable[PciDevice]) -> Iterator[str]:
    """Yield one row for each device; virtual functions are counted at their physical one."""
    for device in _shown(devices):
        if device.physfn is not None:
            continue
        what = _CLASSES.get((device.class_ or "")[2:4], device.class_ or "?")
        names = " ".join((*device.net, *device.block))
        parts = [f"{what:<11} {device.driver or 'no driver':<12}", names]
        if device.iommu_group is not None:
            others = len(device.iommu_group_members)
            shared = f" with {counted(others, 'other')}" if others else ""
            parts.append(f"IOMMU group {device.iommu_group}{shared}")
        if device.sriov is not None:
            parts.append(f"{device.sriov.num_vfs} of {device.sriov.total_vfs} VFs")
        if device.boot_vga:
            parts.append("boot display")
        yield f"  {device.address} {'  '.join(filter(None, parts))}".rstrip()


def _interrupts(host: Host, cpus: CpuSet) -> Iterator[str]:
    """Yield how many interrupts arrive on these CPUs, and how many of them cannot be moved."""
    here = [irq for irq in host.irqs or () if _arrives(irq, cpus)]
    if here:
        managed = sum(bool(irq.likely_managed) for irq in here)
        count = sum(irq.count or 0 for irq in here)
        fixed = f", {managed} of them likely managed" if managed else ""
        yield f"  {'interrupts':<12} {len(here)} arrive here{fixed}; {count} so far"


def _arrives(irq: Irq, cpus: CpuSet) -> bool:
    where = irq.effective_affinity or irq.affinity
    return bool(irq.actions) and where is not None and not where.isdisjoint(cpus)
