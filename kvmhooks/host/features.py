"""The features of a host, told from everything else that was read; nothing is read here.

The parameters are those of the KVM modules (Documentation/admin-guide/kernel-parameters.txt); the
CPU flags those of ``/proc/cpuinfo``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmhooks.host.resources import Features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvmhooks.host.model import Cpu, Host

_YES: Final = frozenset({"Y", "y", "1"})
_NO: Final = frozenset({"N", "n", "0"})

_PARAMETERS: Final = {
    "sev": ("kvm_amd.sev",),
    "sev_es": ("kvm_amd.sev_es",),
    "sev_snp": ("kvm_amd.sev_snp",),
    "tdx": ("kvm_intel.tdx",),
    "nested": ("kvm_intel.nested", "kvm_amd.nested"),
    "nested_paging": ("kvm_intel.ept", "kvm_amd.npt"),
    "apic_virtualisation": ("kvm_intel.enable_apicv", "kvm_amd.avic"),
}
"""The parameter that says whether KVM uses it, by vendor."""


def tell(host: Host, *, irqbalance: bool | None) -> Features:
    """Put together what follows from the parts of a host."""
    switches = {name: _switch(host, names) for name, names in _PARAMETERS.items()}
    iommu = host.iommu
    memory = host.memory.hugepages if host.memory is not None else None
    return Features(
        hugepages=None if memory is None else tuple(pool.size_kib for pool in memory),
        resctrl=_resctrl(host),
        iommu=None if iommu is None else bool(iommu.groups),
        interrupt_remapping=iommu.interrupt_remapping if iommu is not None else None,
        posted_interrupts=iommu.posted_interrupts if iommu is not None else None,
        numa=None if host.nodes is None else len(host.nodes) > 1,
        smt=_any(host.cpus, lambda cpu: None if not cpu.siblings else len(cpu.siblings) > 1),
        hybrid=_any(host.cpus, lambda cpu: cpu.kind == "efficiency"),
        sriov=None if host.pci is None else any(device.sriov for device in host.pci),
        irqbalance=irqbalance,
        **switches,
    )


def _switch(host: Host, names: Iterable[str]) -> bool | None:
    """Return whether KVM says yes by one of its parameters; None where it has none of them."""
    parameters = (host.kvm.module_parameters if host.kvm is not None else None) or {}
    values = [parameters[name] for name in names if name in parameters]
    if any(value in _YES for value in values):
        return True
    # "nested" and "npt" were numbers once; anything else is not known.
    return False if values and all(value in _NO for value in values) else None


def _resctrl(host: Host) -> bool | None:
    """Return whether it is mounted, or the processor has what it needs
    (Documentation/filesystems/resctrl.rst).
    """
    if host.resctrl is not None and host.resctrl.mounted:
        return True
    flags = host.processor.flags if host.processor is not None else None
    return None if flags is None else bool({"rdt_a", "cat_l3", "cat_l2", "mba"} & set(flags))


def _any(cpus: tuple[Cpu, ...] | None, tell: Callable[[Cpu], bool | None]) -> bool | None:
    answers = [told for cpu in cpus or () if (told := tell(cpu)) is not None]
    return any(answers) if answers else None
