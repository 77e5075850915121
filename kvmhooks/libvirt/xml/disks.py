"""The disks."""

from __future__ import annotations

from typing import Final

from kvmhooks.libvirt.xml.pci import address_of, host_address
from kvmhooks.machine.element import Element, element, yes_no
from kvmhooks.machine.storage import DiskPath, ScsiController
from kvmhooks.placement.model import Plan
from kvmhooks.spec.storage import Disk, Nvme, Throttle

_TARGETS: Final = {
    "virtio-blk": ("virtio", "vd"),
    "virtio-scsi": ("scsi", "sd"),
    "sata": ("sata", "sd"),
    "nvme": ("nvme", "nvme"),
}
"""libvirt's words for the spec's buses, and how it wants disks to be called there."""

_LIMITS: Final = {
    "bytes": "total_bytes_sec",
    "read_bytes": "read_bytes_sec",
    "write_bytes": "write_bytes_sec",
    "operations": "total_iops_sec",
    "read_operations": "read_iops_sec",
    "write_operations": "write_iops_sec",
}


def devices(plan: Plan) -> list[Element]:
    """Return the controllers, then each disk."""
    hardware = plan.hardware
    elements = [_scsi(plan, at, each) for at, each in enumerate(hardware.scsi)]
    if any(path.bus == "sata" for path in hardware.disks):
        elements.append(element("controller", {"type": "sata", "index": 0}))
    named: dict[str, int] = {}
    for index, (disk, path) in enumerate(zip(plan.spec.disk, hardware.disks, strict=True)):
        prefix = _TARGETS[path.bus][1]
        count = named[prefix] = named.get(prefix, -1) + 1
        if path.bus == "nvme":
            elements.append(_nvme_controller(plan, index, count))
        elements.append(_disk(plan, index, disk, path, count))
    for at, controller in enumerate(plan.spec.nvme):
        count = named["vd"] = named.get("vd", -1) + 1
        elements.append(_nvme(plan, at, controller, count))
    return elements


def _scsi(plan: Plan, at: int, controller: ScsiController) -> Element:
    single = controller.iothreads[0] if len(controller.iothreads) == 1 else None
    driver = {"queues": controller.queues, "iothread": single}
    children = [element("driver", driver, _several(controller.iothreads))]
    attributes = {"type": "scsi", "index": at, "model": "virtio-scsi"}
    return element("controller", attributes, [*children, address_of(plan, f"scsi{at}")])


def _nvme_controller(plan: Plan, index: int, count: int) -> Element:
    serial = element("serial", text=plan.hardware.disks[index].serial)
    children = [serial, address_of(plan, f"disk{index}")]
    return element("controller", {"type": "nvme", "index": count}, children)


def _disk(plan: Plan, index: int, disk: Disk, path: DiskPath, count: int) -> Element:
    served = path.iothreads if path.bus == "virtio-blk" else ()  # else its controller is
    driver = {
        "name": "qemu",
        "type": disk.format,
        "cache": disk.cache,
        "io": path.aio,
        "discard": "unmap" if disk.discard else "ignore",
        "detect_zeroes": None if disk.detect_zeroes == "off" else disk.detect_zeroes,
        "iothread": served[0] if len(served) == 1 else None,
        "queues": disk.queues if path.bus == "virtio-blk" else None,
        "queue_size": disk.queue_size if path.bus == "virtio-blk" else None,
    }
    bus, prefix = _TARGETS[path.bus]
    name = f"nvme{count}n1" if bus == "nvme" else f"{prefix}{letters(count)}"
    children = [
        element("driver", driver, _several(served)),
        element(
            "source",
            {"dev" if disk.is_block_device else "file": disk.path},
            _encryption(disk),
        ),
        element("target", {"dev": name, "bus": bus}),
        *([] if disk.throttle is None else [_throttle(disk.throttle)]),
        *([] if disk.logical_block is None else [_block(int(disk.logical_block))]),
        *([element("readonly")] if disk.readonly else []),
        *([element("shareable")] if disk.shared else []),
        *([] if path.serial is None else [element("serial", text=path.serial)]),
        element("boot", {"order": path.boot}),
        _address(plan, index, path, count),
    ]
    kind = "block" if disk.is_block_device else "file"
    return element("disk", {"type": kind, "device": disk.device}, children)


def _address(plan: Plan, index: int, path: DiskPath, count: int) -> Element:
    if path.bus == "virtio-blk":
        return address_of(plan, f"disk{index}")
    controller = count if path.bus == "nvme" else path.controller
    unit = 0 if path.bus == "nvme" else path.unit
    where = {"controller": controller, "bus": 0, "target": 0, "unit": unit}
    return element("address", {"type": "drive", **where})


def _several(iothreads: tuple[int, ...]) -> list[Element]:
    """Return several iothreads that share the queues; libvirt deals the queues out as QEMU does."""
    if len(iothreads) < 2:
        return []
    return [
        element("iothreads", children=[element("iothread", {"id": each}) for each in iothreads])
    ]


def _encryption(disk: Disk) -> list[Element]:
    if disk.encryption is None:
        return []
    secret = element("secret", {"type": "passphrase", "uuid": disk.encryption.secret})
    return [element("encryption", {"format": "luks"}, [secret])]


def _throttle(throttle: Throttle) -> Element:
    limits = {tag: getattr(throttle, ours) for ours, tag in _LIMITS.items()}
    elements = [element(tag, text=int(value)) for tag, value in limits.items() if value is not None]
    return element("iotune", children=elements)


def _block(size: int) -> Element:
    return element("blockio", {"logical_block_size": size, "physical_block_size": size})


def _nvme(plan: Plan, at: int, controller: Nvme, count: int) -> Element:
    """Return a controller of the host that QEMU drives by itself, past the host's kernel."""
    driver = {
        "name": "qemu",
        "type": "raw",
        "iothread": controller.iothread,
        "queues": controller.queues,
    }
    source = {
        "type": "pci",
        "managed": yes_no(controller.managed),
        "namespace": controller.namespace,
    }
    children = [
        element("driver", driver),
        element("source", source, [host_address(controller.address)]),
        element("target", {"dev": f"vd{letters(count)}", "bus": "virtio"}),
        element("boot", {"order": len(plan.spec.disk) + at + 1}),
        address_of(plan, f"nvme{at}"),
    ]
    return element("disk", {"type": "nvme", "device": "disk"}, children)


def letters(index: int) -> str:
    """Return the letters of a disk's name: a to z, then aa, ab and so on."""
    text = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        text = chr(ord("a") + letter) + text
    return text
