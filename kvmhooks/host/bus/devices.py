"""The devices and interrupts of a host, as values. None is «not known», as in ``model``."""

from __future__ import annotations

from attrs import frozen

from kvmhooks.values import CpuSet, PciAddress


@frozen
class Sriov:
    """A physical function's words on its virtual functions."""

    total_vfs: int | None
    """The number that there can be."""
    num_vfs: int | None
    """The number that there are."""
    vfs: tuple[PciAddress, ...]
    """Those that there are, by index."""
    vf_device: str | None = None
    """The device id that they have."""
    offset: int | None = None
    stride: int | None = None


@frozen
class MdevType:
    """A type of mediated devices that a device can be divided into."""

    name: str
    """The name in ``mdev_supported_types``: ``nvidia-35``."""
    available: int | None
    """The number that can still be made."""


@frozen
class PciDevice:
    """One PCI function. Class, vendor and device are written as the kernel does (``0x8086``)."""

    address: PciAddress
    class_: str | None = None
    vendor: str | None = None
    device: str | None = None
    driver: str | None = None
    """None also where there is none: a device without a driver has no such link."""
    node: int | None = None
    """None where the firmware does not say (the kernel's -1)."""
    iommu_group: int | None = None
    iommu_group_members: tuple[PciAddress, ...] = ()
    """The members of the group: all of them go to one VM, or none."""
    physfn: PciAddress | None = None
    """Of a virtual function, the physical one."""
    sriov: Sriov | None = None
    """Of a physical function."""
    mdev_types: tuple[MdevType, ...] = ()
    """The parts of it that can be made (Documentation/driver-api/vfio-mediated-device.rst)."""
    bars: tuple[int, ...] = ()
    """The bytes of each memory BAR of a display or an accelerator; others' are not looked at."""
    reset_methods: tuple[str, ...] | None = None
    """In the order in which the kernel tries them; None where it does not tell (before 5.15)."""
    can_reset: bool | None = None
    boot_vga: bool | None = None
    """The display on which the firmware started; None for what is no display."""
    net: tuple[str, ...] = ()
    block: tuple[str, ...] = ()


@frozen
class Irq:
    """One interrupt line or message."""

    number: int
    actions: tuple[str, ...] | None = None
    chip: str | None = None
    affinity: CpuSet | None = None
    """The CPUs that were asked for."""
    effective_affinity: CpuSet | None = None
    """The CPUs where it really arrives."""
    node: int | None = None
    device: PciAddress | None = None
    hwirq: int | None = None
    likely_managed: bool | None = None
    """The kernel chose its CPUs and lets nobody change them; see
    ``kvmhooks.host.bus.managed_irqs``."""
    count: int | None = None
    """The number of times that it came since the start, on all CPUs."""
    counted_on: CpuSet | None = None
    """The CPUs on which it ever came."""
