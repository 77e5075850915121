"""The way in which each disk does its I/O, and its place on a bus."""

from __future__ import annotations

import hashlib
from typing import Literal

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.machine.qemu_features import (
    BLK_IOTHREADS,
    EMULATED_NVME,
    SCSI_IOTHREADS,
    Feature,
    FeatureUse,
)
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.storage import Bus, Disk

Aio = Literal["io_uring", "native", "threads"]

SATA_PORTS = 6
"""Of the ICH9, which q35 has (hw/ide/ahci.c)."""


@frozen(kw_only=True)
class DiskPath:
    """One disk's way from the guest to the host."""

    bus: Bus
    controller: int
    """The number of its controller on that bus; 0 where the disk is its own."""
    unit: int
    """The number of the disk on that controller."""
    aio: Aio
    iothreads: tuple[int, ...]
    """One: all queues; several: the queues are dealt out to them."""
    serial: str | None
    boot: int


@frozen(kw_only=True)
class ScsiController:
    """A virtio-scsi controller and the iothreads that serve it."""

    iothreads: tuple[int, ...]
    queues: int | None


def choose_disks(
    spec: VmSpec, features: FeatureUse, identity: str, iothreads_of: tuple[int | None, ...]
) -> tuple[tuple[DiskPath, ...], tuple[ScsiController, ...]]:
    """Return each disk's path, and the SCSI controllers: one for each set of iothreads.

    ``iothreads_of`` gives the iothread of each disk that does not name several.
    """
    served = [
        _iothreads(at, disk, iothread, features)
        for at, (disk, iothread) in enumerate(zip(spec.disk, iothreads_of, strict=True))
    ]
    units: dict[tuple[object, ...], int] = {}
    sets: dict[tuple[int, ...], int] = {}
    paths = []
    for at, (disk, iothreads) in enumerate(zip(spec.disk, served, strict=True)):
        bus = disk.attached
        if bus == "nvme":
            features.require(EMULATED_NVME, f"disk[{at}].bus", '"nvme"')
        controller = 0
        if bus == "virtio-scsi":
            controller = sets.setdefault(iothreads, len(sets))
        unit = units.get((bus, controller), 0)
        units[bus, controller] = unit + 1
        if bus == "sata" and unit == SATA_PORTS:
            raise PlanError(f"disk[{at}].bus", "a disk on sata", f"at most {SATA_PORTS} of them")
        paths.append(
            DiskPath(
                bus=bus,
                controller=controller,
                unit=unit,
                aio=_aio(at, disk, features),
                iothreads=iothreads,
                serial=_serial(at, disk, identity),
                boot=at + 1 if disk.boot is None else disk.boot,
            )
        )
    queues = _queues(spec, paths)
    return tuple(paths), tuple(
        ScsiController(iothreads=each, queues=queues.get(at)) for each, at in sets.items()
    )


def _queues(spec: VmSpec, paths: list[DiskPath]) -> dict[int, int]:
    """Return the most queues that a disk of each controller asks for: they share them."""
    most: dict[int, int] = {}
    for disk, path in zip(spec.disk, paths, strict=True):
        if path.bus == "virtio-scsi" and disk.queues is not None:
            most[path.controller] = max(disk.queues, most.get(path.controller, 0))
    return most


def _iothreads(at: int, disk: Disk, iothread: int | None, features: FeatureUse) -> tuple[int, ...]:
    by_bus: dict[str, Feature] = {"virtio-blk": BLK_IOTHREADS, "virtio-scsi": SCSI_IOTHREADS}
    feature = by_bus.get(disk.attached)
    if feature is None:
        return ()
    if len(disk.iothreads) > 1 and not features.has(feature, f"disk[{at}].iothreads"):
        return disk.iothreads[:1]
    return disk.iothreads or (() if iothread is None else (iothread,))


def _aio(at: int, disk: Disk, features: FeatureUse) -> Aio:
    """Return the one asked for; else io_uring where it works, native where no page cache is used.

    ``native`` blocks without O_DIRECT, so QEMU refuses it (block/file-posix.c).
    """
    has_uring = features.target.io_uring
    fallback: Aio = "native" if disk.cache == "none" else "threads"
    if disk.aio == "auto":
        return "io_uring" if has_uring else fallback
    if disk.aio == "io_uring" and not has_uring:
        features.leave_out(f"disk[{at}].aio", "io_uring is not known to work on this target")
        return fallback
    return disk.aio


def _serial(at: int, disk: Disk, identity: str) -> str | None:
    """Return the serial number; an NVMe controller must have one (hw/nvme/ctrl.c)."""
    if disk.serial is None and disk.bus == "nvme":
        return hashlib.sha256(f"{identity}/disk{at}".encode()).hexdigest()[:20]
    return disk.serial
