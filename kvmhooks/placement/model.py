"""A plan: every decision about one VM on one host, as values.

The renderers take nothing but a plan; it holds the spec for what needed no decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet, union


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


@frozen(kw_only=True)
class Topology:
    """The guest's CPU topology; the product of all is the number of vCPUs.

    vCPU numbers run through threads first, then cores, and so on (QEMU's ``-smp``).
    """

    sockets: int = 1
    dies: int = 1
    clusters: int = 1
    cores: int = 1
    threads: int = 1


@frozen(kw_only=True)
class GuestCpu:
    """The CPU model that the guest sees."""

    model: str
    vendor: str | None = None
    """A vendor other than the model's own."""
    features: tuple[str, ...] = ()
    """``+name`` and ``-name``, in the spec's order."""


@frozen(kw_only=True)
class Plan:
    """Where one VM lives on one host, and why."""

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
    """How the cells' memory is bound to their nodes (libvirt's ``<memnode mode=>``)."""
    macs: tuple[str, ...]
    """The guest's MAC address of each ``spec.net``."""
    exclusive: CpuSet
    """CPUs that nothing but this VM's vCPUs may use while it runs."""
    housekeeping: CpuSet
    """CPUs that are kept for the host: no dedicated vCPU is put on them."""
    score: Mapping[str, int]
    """What was minimised, the most important first."""
    why: tuple[str, ...]
    """A sentence for each decision."""
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.spec.name

    @property
    def cpus(self) -> CpuSet:
        """All host CPUs on which anything of the VM may run."""
        vcpus = (pin.cpus for pin in self.vcpus)
        iothreads = (pin.cpus for pin in self.iothreads)
        return union((self.emulator, *vcpus, *iothreads))
