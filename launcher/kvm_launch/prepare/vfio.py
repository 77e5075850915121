"""The needs of a QEMU with devices of the host: their groups' files, and memory to lock.

Documentation/driver-api/vfio.rst of the kernel: a device is had through the file of its IOMMU
group, and what it may reach of the guest's memory is locked, as far as RLIMIT_MEMLOCK goes
(``vfio_lock_acct()``, drivers/vfio/vfio_iommu_type1.c).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvmhooks.placement import Plan
    from kvmhooks.spec import VmSpec

UNLIMITED: Final = -1
"""``RLIM_INFINITY``."""

BESIDE: Final = 1 << 30
"""Bytes that devices reach beside the guest's memory, their own memory above all; libvirt takes
as much (``qemuDomainGetMemLockLimitBytes()``)."""

_DEVICES: Final = Path("sys/bus/pci/devices")
_MEDIATED: Final = Path("sys/bus/mdev/devices")


def locked_memory(spec: VmSpec) -> int:
    """Return how many bytes QEMU may have to lock; 0 for none, ``UNLIMITED`` for all.

    QEMU asks for all of itself with ``memory.locked`` (mlockall(2)).
    """
    if spec.memory.locked:
        return UNLIMITED
    has_hostdev = any(net.type in {"hostdev", "vdpa"} for net in spec.net)
    if not (spec.pci or spec.nvme or spec.mdev or has_hostdev):
        return 0
    memory = spec.memory
    more = sum(dimm.size for dimm in memory.dimm) + sum(each.size for each in memory.virtio)
    most = max(memory.maximum or 0, memory.size + more)
    shared = 0 if spec.shared_memory is None else spec.shared_memory.size  # a BAR, which is mapped
    return int(most) + int(shared) + BESIDE


def nodes_of(plan: Plan, root: Path = Path("/")) -> list[Path]:
    """Return the files in ``/dev/vfio`` of the groups that the devices of ``plan`` are in.

    A device that is not there, or in no group, has none: QEMU says so.
    """
    groups = (path / "iommu_group" for path in _places(plan, root))
    names = {group.readlink().name for group in groups if group.is_symlink()}
    return [Path("/dev/vfio", name) for name in sorted(names, key=int)]


def _places(plan: Plan, root: Path) -> Iterator[Path]:
    spec = plan.spec
    for device in spec.pci:
        yield root / _DEVICES / str(device.chosen)
    addresses = [*(each.address for each in spec.nvme), *(each.address for each in spec.net)]
    for address in filter(None, addresses):
        yield root / _DEVICES / str(address)
    for mediated in spec.mdev:
        yield root / _MEDIATED / str(mediated.chosen)
