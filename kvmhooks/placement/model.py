"""A plan: every decision about one VM on one host, as values.

The renderers take nothing but a plan; it holds the spec for what needed no decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

from attrs import field, frozen

from kvmhooks.values import CpuSet, PciAddress, union

if TYPE_CHECKING:
    from kvmhooks.machine.devices.device import DeviceContext
    from kvmhooks.machine.guest_cpu import GuestCpu
    from kvmhooks.machine.hardware import Hardware
    from kvmhooks.machine.topology import Topology
    from kvmhooks.spec.model import VmSpec

ORDINARY_PAGE_KIB: Final = 4


@frozen
class VcpuPin:
    """The host CPUs that one vCPU may run on."""

    vcpu: int
    cpus: CpuSet


@frozen
class IothreadPin:
    """The host CPUs that one iothread may run on; iothreads count from 1, as libvirt's do."""

    id: int
    cpus: CpuSet


@frozen
class Cell:
    """One NUMA node of the guest."""

    id: int
    node: int | None
    """The host node that its memory comes from; None leaves that to the kernel."""
    vcpus: CpuSet
    memory_kib: int
    page_kib: int
    """The page size that its memory is made of: 4 for ordinary pages."""
    allocate: int = 0
    """The number of its huge pages that are not there yet and have to be allocated at the start."""

    @property
    def pages(self) -> int:
        """The number of its pages."""
        return self.memory_kib // self.page_kib

    @property
    def is_huge(self) -> bool:
        """Its pages are explicit huge pages."""
        return self.page_kib > ORDINARY_PAGE_KIB


@frozen
class PciPlace:
    """The place of one passed-through device, on the host and in the guest."""

    address: PciAddress
    node: int | None
    """The host node that it is attached to; None where the firmware does not say."""
    cell: int | None
    """The guest cell on that node, which a ``pxb-pcie`` bus stands for when the guest has several
    cells; None: no cell is on its node, and it goes on the root bus."""


@frozen
class CacheShare:
    """The VM's own ways of one L3 cache (a resctrl domain)."""

    cache: int
    """The id of the cache, the kernel's and resctrl's."""
    type: Literal["both", "code", "data"]
    """``code`` and ``data`` where the kernel divides them apart (CDP)."""
    mask: int
    """The ways, as bits in a row; libvirt chooses the place itself and takes only the size."""
    size_kib: int
    """The size of that part of the cache (libvirt's ``<cache size=>``)."""


@frozen(kw_only=True)
class Plan:
    """The place of one VM on one host, with the reasons."""

    spec: VmSpec
    uuid: str
    accel: Literal["kvm", "tcg"]
    cpu: GuestCpu
    topology: Topology
    vcpus: tuple[VcpuPin, ...]
    emulator: CpuSet
    """The CPUs of QEMU's main loop and whatever else of it is neither vCPU nor iothread."""
    iothreads: tuple[IothreadPin, ...]
    cells: tuple[Cell, ...]
    memory_mode: Literal["strict", "preferred"]
    """The binding of the cells' memory to their nodes (libvirt's ``<memnode mode=>``)."""
    hardware: Hardware
    """The guest's hardware, as far as it had to be decided."""
    macs: tuple[str, ...]
    """The guest's MAC address of each ``spec.net``."""
    exclusive: CpuSet
    """CPUs that nothing but this VM's vCPUs may use while it runs."""
    housekeeping: CpuSet
    """CPUs that are kept for the host: no dedicated vCPU is put on them."""
    dedicated: CpuSet = CpuSet()
    """The vCPUs (their numbers in the guest) that have a host CPU each."""
    idle: CpuSet = CpuSet()
    """Host CPUs that nobody may use: what ``smt = "isolate"`` leaves of the VM's cores."""
    vhost: CpuSet = CpuSet()
    """The CPUs of the VM's vhost threads."""
    disk_iothreads: tuple[int | None, ...] = ()
    """For each ``spec.disk`` the iothread that serves it; None is QEMU's main loop."""
    distances: tuple[tuple[int, ...], ...] = ()
    """From each guest cell to each, 10 is local; empty with one cell."""
    pci: tuple[PciPlace, ...] = ()
    """A place for each ``spec.pci``."""
    caches: tuple[CacheShare, ...] = ()
    """Ways of L3 caches that are this VM's own; empty when none were asked for."""
    bandwidth: tuple[tuple[int, int], ...] = ()
    """(L3 cache id, percent): the most memory bandwidth; empty for no limit."""
    score: Mapping[str, int]
    """The numbers that were minimised, the most important first
    (``kvmhooks.placement.search.objective``).
    """
    optimal: bool = True
    """The score is proven to be the best there is."""
    gap: Mapping[str, int] = field(factory=dict)
    """The first number of the score that could be lower, and by how much at most, if it is not
    optimal.
    """
    why: tuple[str, ...]
    """A sentence for each decision."""
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.spec.name

    @property
    def device_context(self) -> DeviceContext:
        """The part of this that its small devices may know."""
        from kvmhooks.machine.devices.device import (  # noqa: PLC0415 -- for what is written down
            DeviceContext,
        )

        hardware = self.hardware
        return DeviceContext(
            spec=self.spec, layout=hardware.layout, cid=hardware.cid, vcpus=len(self.vcpus)
        )

    @property
    def dedicated_cpus(self) -> CpuSet:
        """The CPUs of the vCPUs that have one each."""
        return union(pin.cpus for pin in self.vcpus if pin.vcpu in self.dedicated)

    @property
    def warnings_of_place(self) -> tuple[str, ...]:
        """The warnings but for what is left out of the guest's hardware: of a guest that was not
        planned here that is there, whatever libvirt's and QEMU's versions are.
        """
        return tuple(each for each in self.warnings if each not in self.hardware.left_out)

    @property
    def cpus(self) -> CpuSet:
        """All host CPUs on which anything of the VM may run."""
        vcpus = (pin.cpus for pin in self.vcpus)
        iothreads = (pin.cpus for pin in self.iothreads)
        return union((self.emulator, *vcpus, *iothreads))
