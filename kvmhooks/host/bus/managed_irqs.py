"""Interrupts whose CPUs the kernel manages, and lets nobody change (EIO, EPERM).

A driver that asks for its vectors with ``PCI_IRQ_AFFINITY`` gets them spread over all CPUs for
good (Documentation/PCI/msi-howto.rst, Documentation/core-api/genericirq.rst); ``isolcpus=
managed_irq`` is the one way to keep them off. sysfs does not say which they are. debugfs does
(``/sys/kernel/debug/irq/irqs/N``, with ``CONFIG_GENERIC_IRQ_DEBUGFS``, for root); otherwise the
name of the action tells, since drivers name them after the queue.
"""

from __future__ import annotations

import re
from typing import Final

_QUEUES: Final = (
    re.compile(r"nvme\d+q[1-9]\d*", re.ASCII),  # drivers/nvme/host/pci.c; queue 0 is free
    re.compile(r"virtio\d+-req\.\d+", re.ASCII),  # drivers/block/virtio_blk.c
    re.compile(r"virtio\d+-request", re.ASCII),  # drivers/scsi/virtio_scsi.c
    re.compile(r"virtio\d+-requests\.\d+", re.ASCII),  # fs/fuse/virtio_fs.c
    re.compile(r"megasas\d+-msix\d+", re.ASCII),
    re.compile(r"mpt[23]sas\d+-msix\d+", re.ASCII),
    re.compile(r"mpi3mr\d+-msix[1-9]\d*", re.ASCII),
    re.compile(r"hpsa\d+-msix\d+", re.ASCII),
    re.compile(r"smartpqi", re.ASCII),
    re.compile(r"aacraid\d*", re.ASCII),
    re.compile(r"qla2xxx \(qpair\d+\)", re.ASCII),
    re.compile(r"hisi_sas_v3_hw cq", re.ASCII),
)
"""Actions of queues whose drivers ask for managed vectors."""

_FLAG: Final = "IRQD_AFFINITY_MANAGED"


def is_likely_managed(actions: tuple[str, ...] | None, state: str | None) -> bool | None:
    """Tell by what debugfs says, or else by the names of the actions; None without either."""
    if state:
        return _FLAG in state
    if not actions:
        return None
    return any(queue.fullmatch(action) for action in actions for queue in _QUEUES)
