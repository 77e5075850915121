"""The disks and the iothreads that serve them."""

from __future__ import annotations

from typing import Any

from kvmhooks.machine.arguments import option
from kvmhooks.machine.storage import DiskPath
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.argv.plug import plug, where
from kvmhooks.spec.storage import Disk, Throttle

_CACHE = {
    # libvirt's and QEMU's ``cache=``: (direct, no-flush, the guest sees a write cache)
    "none": (True, False, True),
    "writeback": (False, False, True),
    "writethrough": (False, False, False),
    "unsafe": (False, True, True),
}
"""The parts of a cache mode, from the table under ``cache=`` in QEMU's invocation page."""

_LIMITS = {
    "bytes": "bps-total",
    "read_bytes": "bps-read",
    "write_bytes": "bps-write",
    "operations": "iops-total",
    "read_operations": "iops-read",
    "write_operations": "iops-write",
}
"""QEMU's ``ThrottleLimits`` (qapi/block-core.json)."""


def arguments(plan: Plan) -> list[str]:
    """Return the iothreads, the SCSI controllers, then each disk's file, format and device."""
    words: list[str] = []
    for iothread in plan.iothreads:
        words += option("object", {"qom-type": "iothread", "id": f"iothread{iothread.id}"})
    for at, controller in enumerate(plan.hardware.scsi):
        served = _served(controller.iothreads)
        queues = {"num_queues": controller.queues}
        words += option("device", {**plug(plan, "virtio-scsi", f"scsi{at}"), **served, **queues})
    for index, (disk, path) in enumerate(zip(plan.spec.disk, plan.hardware.disks, strict=True)):
        words += _blockdevs(index, disk, path)
        words += _device(plan, index, disk, path)
    return words + _nvme(plan)


def _blockdevs(index: int, disk: Disk, path: DiskPath) -> list[str]:
    direct, no_flush, _ = _CACHE[disk.cache]
    cache = {"direct": direct, "no-flush": no_flush}
    name = f"disk{index}"
    discard = {"discard": "unmap" if disk.discard else "ignore"}
    file = {
        "driver": "host_device" if disk.is_block_device else "file",
        "node-name": f"{name}-file",
        "filename": str(disk.path),
        "aio": path.aio,
        **discard,
        "read-only": disk.readonly,
        "cache": cache,
    }
    image = {
        **_format(disk, name),
        "node-name": f"{name}-format",
        "file": f"{name}-file",
        **discard,
        "detect-zeroes": None if disk.detect_zeroes == "off" else disk.detect_zeroes,
        "read-only": disk.readonly,
        "cache": cache,
    }
    words = []
    if disk.encryption is not None:
        secret = {"qom-type": "secret", "id": f"{name}-secret", "file": str(disk.encryption.key)}
        words += option("object", secret)
    words += [*option("blockdev", file), *option("blockdev", image)]
    return words + (_throttle(name, disk.throttle) if disk.throttle is not None else [])


def _format(disk: Disk, name: str) -> dict[str, Any]:
    """Return the image's format; LUKS is one of its own on raw images, and a part of qcow2's."""
    if disk.encryption is None:
        return {"driver": disk.format}
    if disk.format == "raw":
        return {"driver": "luks", "key-secret": f"{name}-secret"}
    return {"driver": "qcow2", "encrypt": {"format": "luks", "key-secret": f"{name}-secret"}}


def _throttle(name: str, throttle: Throttle) -> list[str]:
    limits = {
        theirs: int(value)
        for ours, theirs in _LIMITS.items()
        if (value := getattr(throttle, ours)) is not None
    }
    group = {"qom-type": "throttle-group", "id": f"{name}-limits", "limits": limits}
    node = {
        "driver": "throttle",
        "node-name": f"{name}-throttle",
        "throttle-group": f"{name}-limits",
        "file": f"{name}-format",
    }
    return [*option("object", group), *option("blockdev", node)]


def _device(plan: Plan, index: int, disk: Disk, path: DiskPath) -> list[str]:
    _, _, write_cache = _CACHE[disk.cache]
    name = f"disk{index}"
    block = None if disk.logical_block is None else int(disk.logical_block)
    common = {
        "drive": f"{name}-format" if disk.throttle is None else f"{name}-throttle",
        "bootindex": path.boot,
        "logical_block_size": block,
        "physical_block_size": block,
        "share-rw": True if disk.shared else None,
    }
    if path.bus == "nvme":
        controller = {"driver": "nvme", "id": name, **where(plan, name), "serial": path.serial}
        namespace = {"driver": "nvme-ns", "id": f"{name}-ns", "bus": name, "nsid": 1}
        return [*option("device", controller), *option("device", {**namespace, **common})]
    if path.bus == "virtio-blk":
        device = {
            **plug(plan, "virtio-blk", name),
            **_served(path.iothreads),
            "num-queues": disk.queues,
            "queue-size": disk.queue_size,
        }
    else:
        device = _on_controller(name, disk, path)
    cached = {"write-cache": "on" if write_cache else "off"}
    return option("device", {**device, **common, **cached, "serial": path.serial})


def _on_controller(name: str, disk: Disk, path: DiskPath) -> dict[str, Any]:
    kind = "cd" if disk.device == "cdrom" else "hd"
    if path.bus == "sata":
        return {"driver": f"ide-{kind}", "id": name, "bus": f"ide.{path.unit}"}
    return {
        "driver": f"scsi-{kind}",
        "id": name,
        "bus": f"scsi{path.controller}.0",
        "channel": 0,
        "scsi-id": 0,
        "lun": path.unit,
        "device_id": f"drive-scsi{path.controller}-0-0-{path.unit}",  # the guest sees it
    }


def _served(iothreads: tuple[int, ...]) -> dict[str, Any]:
    """Return one iothread, or several that share the queues (``iothread-vq-mapping``)."""
    if len(iothreads) > 1:
        return {"iothread-vq-mapping": [{"iothread": f"iothread{each}"} for each in iothreads]}
    return {"iothread": f"iothread{iothreads[0]}"} if iothreads else {}


def _nvme(plan: Plan) -> list[str]:
    """Return controllers of the host that QEMU drives by itself, past the host's kernel."""
    words: list[str] = []
    for at, controller in enumerate(plan.spec.nvme):
        name = f"nvme{at}"
        storage = {
            "driver": "nvme",
            "node-name": f"{name}-file",
            "device": str(controller.address),
            "namespace": controller.namespace,
        }
        image = {"driver": "raw", "node-name": f"{name}-format", "file": f"{name}-file"}
        iothreads = () if controller.iothread is None else (controller.iothread,)
        device = {
            **plug(plan, "virtio-blk", name),
            **_served(iothreads),
            "num-queues": controller.queues,
            "drive": f"{name}-format",
            "bootindex": len(plan.spec.disk) + at + 1,
        }
        words += [*option("blockdev", storage), *option("blockdev", image)]
        words += option("device", device)
    return words
