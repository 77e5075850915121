"""The IOMMUs of a host.

The groups are described in the kernel's Documentation/ABI/testing/sysfs-kernel-iommu_groups, the
units in sysfs-class-iommu; Intel's registers (``intel-iommu/cap`` and ``ecap``) in
sysfs-class-iommu-intel-iommu and in the VT-d specification (10.4.2 and 10.4.3).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.files.addresses import ADDRESS
from kvmhooks.host.resources import Iommu
from kvmhooks.values import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

_GROUPS: Final = "sys/kernel/iommu_groups"
_UNITS: Final = "sys/class/iommu"
_NUMBER: Final = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_HEX: Final = re.compile(r"[0-9a-f]{1,16}", re.ASCII)
_POSTED: Final = 1 << 59
"""Of the capability register: posted interrupts."""
_REMAPPING: Final = 1 << 3
"""Of the extended capability register: interrupt remapping."""


def read_iommu(tree: Tree) -> Iommu | None:
    """Read the IOMMUs; None where the kernel has no support for them."""
    groups = _read_groups(tree)
    units = tree.directory(_UNITS)
    if units is None:
        return None if groups is None else Iommu(groups=groups)
    with units:
        names = tuple(units.names(_NAME))
        registers = [_read_registers(tree, name) for name in names]
    return Iommu(
        units=names,
        groups=groups,
        interrupt_remapping=_all_have(_REMAPPING, (extended for _, extended in registers)),
        posted_interrupts=_all_have(_POSTED, (capabilities for capabilities, _ in registers)),
    )


def _read_groups(tree: Tree) -> dict[int, tuple[PciAddress, ...]] | None:
    directory = tree.directory(_GROUPS)
    if directory is None:
        return None
    with directory:
        numbers = sorted(directory.names(_NUMBER), key=int)
        return {int(number): _read_group(directory, number) for number in numbers}


def _read_group(groups: Directory, number: str) -> tuple[PciAddress, ...]:
    directory = groups.child(number)
    if directory is None:
        return ()
    with directory:
        devices = directory.child("devices")
        if devices is None:
            return ()
        with devices:
            return tuple(sorted(map(PciAddress.parse, devices.names(ADDRESS))))


def _read_registers(tree: Tree, unit: str) -> tuple[int | None, int | None]:
    """Return Intel's two capability registers; None of another maker."""
    directory = tree.directory(f"{_UNITS}/{unit}/intel-iommu")
    if directory is None:
        return None, None
    with directory:
        cap, ecap = directory.text("cap"), directory.text("ecap")
    return _register(cap), _register(ecap)


def _register(text: str | None) -> int | None:
    return int(text, 16) if text is not None and _HEX.fullmatch(text) else None


def _all_have(bit: int, registers: Iterable[int | None]) -> bool | None:
    known = [register for register in registers if register is not None]
    return all(register & bit for register in known) if known else None
