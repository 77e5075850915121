"""The kernel, the processor and KVM, as values. None is «not known», as in ``model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.values import CpuSet


@frozen
class Isolation:
    """The quiet CPUs that the kernel's command line asks for."""

    isolcpus: CpuSet | None = None
    isolcpus_flags: tuple[str, ...] = ()
    """``domain``, ``managed_irq``, ``nohz``; ``domain`` is meant where none is given."""
    nohz_full: CpuSet | None = None
    rcu_nocbs: CpuSet | None = None
    irqaffinity: CpuSet | None = None


@frozen
class BootPages:
    """Huge pages that the command line asks for."""

    size_kib: int | None
    """None: the default size."""
    count: int
    node: int | None = None


@frozen
class Kernel:
    """The running kernel and how it was started."""

    release: str | None = None
    cmdline: str | None = None
    isolated: CpuSet | None = None
    nohz_full: CpuSet | None = None
    services: CpuSet | None = None
    """The CPUs that systemd starts its services on, where it was told some
    (``systemd.cpu_affinity=`` or ``CPUAffinity=``)."""
    version: str | None = None
    """All of ``/proc/version``."""
    parameters: Mapping[str, tuple[str, ...]] | None = None
    """The command line taken apart: every value of each parameter, in order."""
    asked: Isolation | None = None
    boot_pages: tuple[BootPages, ...] | None = None
    preemption: str | None = None
    """``none``, ``voluntary``, ``full``, ``lazy`` or ``rt``."""
    clocksource: str | None = None
    clocksources: tuple[str, ...] | None = None
    transparent_hugepages: Mapping[str, str] | None = None
    """The choice in force of each switch (``enabled``, ``defrag``, …)."""
    ksm: Mapping[str, str] | None = None
    vulnerabilities: Mapping[str, str] | None = None
    sysctls: Mapping[str, str] | None = None
    """Those that matter to VMs, by their usual name (``vm.swappiness``)."""


@frozen
class Sev:
    """The encryption of guests' memory by an AMD processor."""

    cbitpos: int
    """The bit of a page table's entry that says encrypted."""
    asids: int
    """The guests of SEV that it has keys for at a time."""
    es_asids: int
    """Those of SEV-ES and SEV-SNP."""


@frozen
class Processor:
    """The first CPU of ``/proc/cpuinfo``."""

    vendor: str | None = None
    model_name: str | None = None
    family: int | None = None
    model: int | None = None
    stepping: int | None = None
    microcode: str | None = None
    flags: tuple[str, ...] | None = None
    vmx_flags: tuple[str, ...] | None = None
    sev: Sev | None = None


@frozen
class Kvm:
    """KVM on this host."""

    available: bool | None = None
    """A VM could be made: on the live host ``/dev/kvm`` was opened and speaks API version 12."""
    vendor: str | None = None
    """``intel``, ``amd``, or what follows ``kvm_`` in the name of another module."""
    module_parameters: Mapping[str, str] | None = None
    """Named as on the kernel's command line: ``kvm_intel.nested``."""
    present: bool | None = None
    """The device is there, whoever may use it."""
