"""The number of iothreads, and the one that serves each disk."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from kvmhooks.spec.model import VmSpec
from kvmhooks.wording import counted

SERVED: Final = {"virtio-blk", "virtio-scsi"}
"""The buses whose devices run on iothreads (the property ``iothread`` in qapi's ``-device``)."""


@frozen
class Served:
    """The iothreads by number, and the one of each disk (None: QEMU's main loop)."""

    iothreads: tuple[int, ...]
    disks: tuple[int | None, ...]
    why: tuple[str, ...]


def count_for(*, disks: int, vcpus: int) -> int:
    """Return how many iothreads serve so many disks: one each, but at most one for two vCPUs.

    More would take more of the host than the guest can keep busy.
    """
    return min(disks, max(vcpus // 2, 1))


def serve_disks(spec: VmSpec) -> Served:
    """Give the disks that name no iothread some, in turn.

    There are as many as ``count_for`` says; ``cpu.iothreads`` says another number.
    """
    named = {number for disk in spec.disk for number in disk.served_by}
    named |= {nvme.iothread for nvme in spec.nvme if nvme.iothread is not None}
    others = [
        index
        for index, disk in enumerate(spec.disk)
        if not disk.served_by and disk.attached in SERVED and spec.machine.type != "microvm"
    ]
    asked = spec.cpu.iothreads
    count = count_for(disks=len(others), vcpus=spec.cpu.vcpus) if asked is None else asked
    fresh: list[int] = []
    number = 1
    while len(fresh) < count:
        if number not in named:
            fresh.append(number)
        number += 1
    disks = [disk.iothread for disk in spec.disk]
    for turn, index in enumerate(others if fresh else ()):
        disks[index] = fresh[turn % len(fresh)]
    why: tuple[str, ...] = ()
    if fresh and asked is None:
        serve = counted(len(others), "disk")
        why = (f"{counted(count, 'iothread')} for {serve}: no more than one for two vCPUs",)
    return Served(tuple(sorted(named | set(fresh))), tuple(disks), why)
