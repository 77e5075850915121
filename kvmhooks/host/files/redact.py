"""Take out of a capture what names a machine or its owner: MACs, UUIDs, serial numbers, secrets.

Equal things stay equal: the first MAC becomes ``02:00:00:00:00:01`` wherever it stands, so that
what belonged together still does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.files.formats import split_words

if TYPE_CHECKING:
    from collections.abc import Callable

_MAC: Final = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}(?:\1[0-9a-f]{2})?(?![0-9a-f])",
    re.IGNORECASE | re.ASCII,
)
"""Six bytes, or seven as in ``BOOTIF=01-52-54-00-12-34-56``."""
_NAMED_MAC: Final = re.compile(r"(?<=enx|wlx)[0-9a-f]{12}|(?<=wwx)[0-9a-f]{12}", re.ASCII)
"""Interfaces that systemd names after their MAC (systemd.net-naming-scheme(7))."""
_UUID: Final = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f])",
    re.IGNORECASE | re.ASCII,
)
_SECRET: Final = re.compile(
    r"((?:password|passwd|secret|token|serial_number|serialno|machine[_-]id)[\w.-]{0,64}=)\S+",
    re.IGNORECASE | re.ASCII,
)
"""Without what stands before the word, and within bounds: a hostile text would take for ever."""
_WORD: Final = re.compile(r'(?:[^\s"]|"[^"]*"?)+', re.ASCII)
"""Of the kernel's command line; a quoted value may hold blanks (Documentation/admin-guide/
kernel-parameters.rst). Only ASCII's blanks are any to the kernel: lib/cmdline.c, next_arg."""
_NAME: Final = re.compile(r"[\w.-]+", re.ASCII)
_VALUE: Final = re.compile(r"[\w.,:+-]*", re.ASCII)
_KNOWN: Final = frozenset(
    split_words("""
    isolcpus nohz nohz_full rcu_nocbs irqaffinity
    maxcpus nr_cpus possible_cpus nosmt mitigations mem numa numa_balancing
    hugepages hugepagesz default_hugepagesz hugetlb_cma hugetlb_free_vmemmap transparent_hugepage
    iommu iommu.passthrough iommu.strict intel_iommu amd_iommu amd_iommu_intr intremap
    pci pcie_acs_override pcie_aspm pci_stub.ids vfio_pci.ids vfio_pci.disable_vga
    vfio_iommu_type1.allow_unsafe_interrupts
    kvm.halt_poll_ns kvm.ignore_msrs kvm.nx_huge_pages kvm.tdp_mmu kvm_intel.nested kvm_intel.ept
    kvm_intel.enable_apicv kvm_intel.tdx kvm_amd.nested kvm_amd.npt kvm_amd.avic kvm_amd.sev
    kvm_amd.sev_es kvm_amd.sev_snp mem_encrypt
    preempt threadirqs skew_tick clocksource tsc idle nmi_watchdog audit
    processor.max_cstate intel_idle.max_cstate intel_pstate amd_pstate cpufreq.default_governor
    cgroup_disable cgroup_enable cgroup_no_v1 psi systemd.unified_cgroup_hierarchy
    systemd.legacy_systemd_cgroup_controller
    gather_data_sampling indirect_target_selection kvm_intel.vmentry_l1d_flush l1tf mds
    mmio_stale_data pti reg_file_data_sampling retbleed spec_rstack_overflow
    spec_store_bypass_disable spectre_bhi spectre_v2 spectre_v2_user
    srbds tsa tsx tsx_async_abort vmscape
    """)
)
"""Parameters that tell something of VMs on this host, with underscores for dashes."""


class Redactor:
    """Replaces; remembers what it replaced with what."""

    def __init__(self) -> None:
        self._macs: dict[str, int] = {}
        self._uuids: dict[str, int] = {}

    def text(self, text: str) -> str:
        """Give the text without them."""
        text = _SECRET.sub(r"\1removed", text)
        text = _UUID.sub(_numbered(self._uuids, "00000000-0000-4000-8000-{:012x}".format), text)
        text = _MAC.sub(self._mac, text)
        return _NAMED_MAC.sub(_numbered(self._macs, "02{:010x}".format), text)

    def cmdline(self, text: str) -> str:
        """Return the kernel's command line, with ``removed`` for each value that tells of no VM."""
        return self.text(_WORD.sub(lambda found: _known(found[0]), text))

    def _mac(self, found: re.Match[str]) -> str:
        bytes_ = re.split("[:-]", found[0])
        number = _number(self._macs, "".join(bytes_[-6:]).lower())
        same = bytes_[:-6]
        return found[1].join([*same, "02", *re.findall("..", f"{number:010x}")])


def _known(word: str) -> str:
    """Return a word of the kernel's command line as far as it is known to hold no secret."""
    name, equals, value = word.replace('"', "").partition("=")
    if not _NAME.fullmatch(name):
        return "removed"
    if not equals or (name.replace("-", "_") in _KNOWN and _VALUE.fullmatch(value)):
        return word
    return f"{name}=removed"


def _numbered(known: dict[str, int], write: Callable[[int], str]) -> Callable[[re.Match[str]], str]:
    return lambda found: write(_number(known, found[0].lower()))


def _number(known: dict[str, int], what: str) -> int:
    return known.setdefault(what, len(known) + 1)
