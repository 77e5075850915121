"""The resources that a host hands out, as values. None is «not known», as in ``model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.host.frequency import FrequencyPolicy
    from kvmhooks.values import PciAddress


@frozen
class CacheAllocation:
    """One resource of resctrl that divides a cache (``L3``, or ``L3CODE`` and ``L3DATA``)."""

    resource: str
    level: int
    mask: int | None
    """The ways there are, as bits."""
    ways: int | None
    min_bits: int | None
    classes: int | None
    shareable: int | None
    """The ways that hardware such as a GPU uses too."""
    domains: Mapping[int, int] | None
    """The masks that the default group may use now, by the cache's id."""


@frozen
class BandwidthAllocation:
    """Memory bandwidth allocation, in percent or, where ``mba_MBps`` is on, in MiB/s."""

    classes: int | None
    minimum: int | None
    step: int | None
    domains: Mapping[int, int] | None


@frozen
class Resctrl:
    """Cache and memory bandwidth allocation."""

    mounted: bool
    caches: tuple[CacheAllocation, ...] = ()
    cdp: bool = False
    """Code and data are divided apart."""
    bandwidth: BandwidthAllocation | None = None
    monitoring: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """The groups beside the default one."""
    free_classes: int | None = None
    """The number of groups that can still be made."""


@frozen
class Cgroup:
    """The control groups."""

    version: int | None = None
    controllers: tuple[str, ...] | None = None
    """Those of version 2 that its root has, or of version 1 that are mounted."""
    mode: str | None = None
    """``unified``, ``hybrid`` or ``legacy``, in systemd's words."""
    enabled: Mapping[str, tuple[str, ...]] | None = None
    """Controllers of version 2 by the group whose children have them."""
    systemd: bool | None = None
    slices: tuple[str, ...] | None = None
    misc: Mapping[str, int] | None = None
    """The host's number of each thing that the misc controller counts."""
    misc_used: Mapping[str, int] | None = None
    """The number of them that is in use."""


@frozen
class IdleState:
    """One idle state, as the first CPU that is online has it."""

    name: str | None
    latency_us: int | None
    residency_us: int | None
    disabled: bool | None


@frozen
class Power:
    """Frequencies and idle states."""

    policies: tuple[FrequencyPolicy, ...] = ()
    boost: bool | None = None
    driver_mode: str | None = None
    """Of intel_pstate or amd_pstate: ``active``, ``passive``, ``guided``, ``off``."""
    idle_driver: str | None = None
    idle_governor: str | None = None
    idle_states: tuple[IdleState, ...] = ()


@frozen
class Iommu:
    """The IOMMUs and their groups."""

    units: tuple[str, ...] = ()
    groups: Mapping[int, tuple[PciAddress, ...]] | None = None
    interrupt_remapping: bool | None = None
    posted_interrupts: bool | None = None


@frozen
class Features:
    """The host's features, told from everything else that was read."""

    hugepages: tuple[int, ...] | None = None
    """The sizes in KiB."""
    resctrl: bool | None = None
    sev: bool | None = None
    sev_es: bool | None = None
    sev_snp: bool | None = None
    tdx: bool | None = None
    iommu: bool | None = None
    interrupt_remapping: bool | None = None
    nested: bool | None = None
    nested_paging: bool | None = None
    """EPT or NPT."""
    apic_virtualisation: bool | None = None
    """APICv or AVIC."""
    posted_interrupts: bool | None = None
    """Of devices that are passed through, by the IOMMU."""
    numa: bool | None = None
    smt: bool | None = None
    hybrid: bool | None = None
    sriov: bool | None = None
    irqbalance: bool | None = None
    """It is running."""
