"""The disks."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element
from kvmhooks.render.domain.pci import address_of
from kvmhooks.spec.model import Disk


def devices(plan: Plan) -> list[Element]:
    """Each disk, on virtio-blk."""
    return [_disk(plan, index, disk) for index, disk in enumerate(plan.spec.disk)]


def _disk(plan: Plan, index: int, disk: Disk) -> Element:
    driver = {
        "name": "qemu",
        "type": disk.format,
        "cache": disk.cache,
        "io": "threads",
        "discard": "unmap",
        "iothread": plan.disk_iothreads[index],
        "queues": disk.queues,
    }
    children = [
        element("driver", driver),
        element("source", {"dev" if disk.is_block_device else "file": disk.path}),
        element("target", {"dev": f"vd{letters(index)}", "bus": "virtio"}),
        *([element("readonly")] if disk.readonly else []),
        element("boot", {"order": index + 1}),
        address_of(plan, f"disk{index}"),
    ]
    kind = "block" if disk.is_block_device else "file"
    return element("disk", {"type": kind, "device": "disk"}, children)


def letters(index: int) -> str:
    """The letters of a disk's name: a to z, then aa, ab and so on."""
    text = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        text = chr(ord("a") + letter) + text
    return text
