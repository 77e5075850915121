"""The disks and the iothreads that serve them."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.argv.json_form import option
from kvmhooks.render.buses import port_of
from kvmhooks.spec.model import Disk

_CACHE = {
    # libvirt's and QEMU's ``cache=``: (direct, no-flush, the guest sees a write cache)
    "none": (True, False, True),
    "writeback": (False, False, True),
    "writethrough": (False, False, False),
    "unsafe": (False, True, True),
}
"""The parts of a cache mode, from the table under ``cache=`` in QEMU's invocation page."""


def arguments(plan: Plan) -> list[str]:
    """The iothreads, then for each disk its file, its format and its device."""
    said: list[str] = []
    for iothread in plan.iothreads:
        said += option("object", {"qom-type": "iothread", "id": f"iothread{iothread.id}"})
    for index, disk in enumerate(plan.spec.disk):
        said += _disk(plan, index, disk)
    return said


def _disk(plan: Plan, index: int, disk: Disk) -> list[str]:
    direct, no_flush, write_cache = _CACHE[disk.cache]
    cache = {"direct": direct, "no-flush": no_flush}
    name = f"disk{index}"
    iothread = plan.disk_iothreads[index]
    file = {
        "driver": "host_device" if disk.is_block_device else "file",
        "node-name": f"{name}-file",
        "filename": str(disk.path),
        "aio": "threads",
        "discard": "unmap",
        "read-only": disk.readonly,
        "cache": cache,
    }
    image = {
        "driver": disk.format,
        "node-name": f"{name}-format",
        "file": f"{name}-file",
        "discard": "unmap",
        "read-only": disk.readonly,
        "cache": cache,
    }
    device = {
        "driver": "virtio-blk-pci",
        "id": name,
        "bus": port_of(plan, name).bus,
        "addr": "0x0",
        "drive": f"{name}-format",
        "iothread": None if iothread is None else f"iothread{iothread}",
        "num-queues": disk.queues,
        "write-cache": "on" if write_cache else "off",
        "bootindex": index + 1,
    }
    return [*option("blockdev", file), *option("blockdev", image), *option("device", device)]
