"""``<cputune>``, ``<memtune>`` and ``<blkiotune>``: pins, scheduling, shares and limits."""

from __future__ import annotations

from typing import Final

from kvmhooks.machine.element import Element, element
from kvmhooks.placement.model import CacheShare, Plan
from kvmhooks.spec.tuning import IoDevice, Threads
from kvmhooks.values import CpuSet

_REALTIME: Final = frozenset({"fifo", "rr"})

_IO_LIMITS: Final = {
    "weight": "weight",
    "read_operations": "read_iops_sec",
    "write_operations": "write_iops_sec",
    "read_bytes": "read_bytes_sec",
    "write_bytes": "write_bytes_sec",
}


def elements(plan: Plan) -> list[Element]:
    """Return everything that is the host's business: none of it is QEMU's own."""
    return [element("cputune", children=_cputune(plan)), *_memtune(plan), *_blkiotune(plan)]


def _cputune(plan: Plan) -> list[Element]:
    tuning = plan.spec.tuning
    bandwidths = {
        "global": (tuning.total.period, tuning.total.quota),
        "": (tuning.vcpus.period, tuning.vcpus.quota),
        "emulator": (tuning.emulator.period, tuning.emulator.quota),
        "iothread": (tuning.iothreads.period, tuning.iothreads.quota),
    }
    elements = [] if tuning.shares is None else [element("shares", text=tuning.shares)]
    for kind, (period, quota) in bandwidths.items():
        prefix = f"{kind}_" if kind else ""
        if period is not None:
            elements.append(element(f"{prefix}period", text=period))
        if quota is not None:
            elements.append(element(f"{prefix}quota", text=quota))
    return [*elements, *_pins(plan), *_schedulers(plan), *_resctrl(plan)]


def _pins(plan: Plan) -> list[Element]:
    """Return a pin for each vCPU, one for the emulator, one for each iothread."""
    return [
        *(element("vcpupin", {"vcpu": pin.vcpu, "cpuset": str(pin.cpus)}) for pin in plan.vcpus),
        element("emulatorpin", {"cpuset": str(plan.emulator)}),
        *(
            element("iothreadpin", {"iothread": pin.id, "cpuset": str(pin.cpus)})
            for pin in plan.iothreads
        ),
    ]


def _schedulers(plan: Plan) -> list[Element]:
    tuning = plan.spec.tuning
    vcpus = CpuSet(pin.vcpu for pin in plan.vcpus)
    elements: list[Element] = []
    if tuning.vcpus.scheduler != "other":
        elements.append(_scheduler("vcpusched", tuning.vcpus, {"vcpus": str(vcpus)}))
    elif plan.spec.cpu.realtime and plan.dedicated:
        first = Threads(scheduler="fifo")
        elements.append(_scheduler("vcpusched", first, {"vcpus": str(plan.dedicated)}))
    if tuning.emulator.scheduler != "other":
        elements.append(_scheduler("emulatorsched", tuning.emulator, {}))
    if tuning.iothreads.scheduler != "other" and plan.iothreads:
        numbers = str(CpuSet(pin.id for pin in plan.iothreads))
        elements.append(_scheduler("iothreadsched", tuning.iothreads, {"iothreads": numbers}))
    return elements


def _scheduler(tag: str, threads: Threads, which: dict[str, str]) -> Element:
    priority = (threads.priority or 1) if threads.scheduler in _REALTIME else None
    return element(tag, {**which, "scheduler": threads.scheduler, "priority": priority})


def _resctrl(plan: Plan) -> list[Element]:
    """Return the VM's own part of L3 caches and of the memory's bandwidth, for its dedicated vCPUs.

    libvirt wants one ``<cachetune>`` for a set of vCPUs, and the same set in ``<memorytune>``.
    """
    vcpus = {"vcpus": str(plan.dedicated or CpuSet(pin.vcpu for pin in plan.vcpus))}
    elements = []
    if plan.caches:
        elements.append(element("cachetune", vcpus, [_cache(share) for share in plan.caches]))
    if plan.bandwidth:
        nodes = [
            element("node", {"id": cache, "bandwidth": percent})
            for cache, percent in plan.bandwidth
        ]
        elements.append(element("memorytune", vcpus, nodes))
    return elements


def _cache(share: CacheShare) -> Element:
    size = {"size": share.size_kib, "unit": "KiB"}
    return element("cache", {"id": share.cache, "level": 3, "type": share.type, **size})


def _memtune(plan: Plan) -> list[Element]:
    limits = plan.spec.tuning.memory
    given = {"hard_limit": limits.hard, "soft_limit": limits.soft, "swap_hard_limit": limits.swap}
    elements = [
        element(tag, {"unit": "KiB"}, text=amount.in_kib)
        for tag, amount in given.items()
        if amount is not None
    ]
    return [element("memtune", children=elements)] if elements else []


def _blkiotune(plan: Plan) -> list[Element]:
    io = plan.spec.tuning.io
    elements = [] if io.weight is None else [element("weight", text=io.weight)]
    elements += [_device(device) for device in io.device]
    return [element("blkiotune", children=elements)] if elements else []


def _device(device: IoDevice) -> Element:
    limits = {tag: getattr(device, ours) for ours, tag in _IO_LIMITS.items()}
    elements = [element(tag, text=int(value)) for tag, value in limits.items() if value is not None]
    return element("device", children=[element("path", text=device.path), *elements])
