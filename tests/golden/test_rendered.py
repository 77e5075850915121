"""Every field of a plan is rendered, or it is written down here why not.

A plan that notes what is read of it goes through each concern of both renderings, for every golden
case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pytest

from kvmhooks.libvirt import xml
from kvmhooks.placement import Plan
from kvmhooks.qemu import argv
from tests.golden.cases import CASES, golden_plan
from tests.golden.recorder import watch
from tests.golden.test_golden import _classes, _keys

Fields = Mapping[str, str]

FOR_PEOPLE: Final[Fields] = {
    "CpuAnswers": "absent cbitpos lacking reduced_phys_bits without_sev",
    "Hardware": "left_out required target",
    "Plan": "gap optimal score warnings why",
    "Target": "answers domain io_uring known libvirt qemu runs_it told vhost_net",
}
"""Reasons, and what was planned for."""

THE_HOSTS: Final[Fields] = {
    "CacheShare": "mask",
    "Disk": "passed",
    "Cell": "allocate",
    "Guest": "report",
    "Isolation": "cache_ways",
    "Plan": "exclusive housekeeping vhost",
    "Run": "hang_timeout ready restart restart_delay writable",
    "Shutdown": "timeout",
    "VmSpec": "cloud_init helper image run shutdown",
    "Helper": "command socket user",
    "SharedMemory": "user",
    "Tpm": "state",
    "CloudInit": "meta_data network seed user_data",
    "Image": "base base_format format path size",
}
"""Keys that the claim, the hook or kvm-launch sees to on the host; no part of the guest."""

DECIDED: Final[Fields] = {
    "Clock": "kvmclock offset tsc_frequency",
    "Cpu": (
        "caches cores cpu_pm dedicated dies features hidden hint_dedicated hyperv "
        "iothreads kind l3 migratable model placement pmu poll_control pv_eoi pv_ipi "
        "pv_spinlocks ratio smt sockets threads vcpus"
    ),
    "Disk": "aio boot bus iothread iothreads serial",
    "Guest": "os",
    "Isolation": "memory_bandwidth",
    "Machine": "accel irqchip",
    "Memory": "allocate backend cell cells hugepages mode nodes prealloc share size",
    "MemoryCell": "node size vcpus",
    "Net": "mac vhost",
    "Pci": "block group id index iommu_group locality net",
    "PciPlace": "address cell node",
    "Plan": "disk_iothreads pci",
    "Port": "device",
    "Security": "cbitpos kernel_hashes policy reduced_phys_bits type",
    "Topology": "clusters",
    "VmSpec": "profile security uuid",
    "Vsock": "cid",
}
"""Words of the spec whose decision stands elsewhere in the plan, mostly in ``hardware``."""

NOT_IN_ARGV: Final[Fields] = {
    "Bandwidth": "period quota",
    "CacheShare": "cache size_kib type",
    "Cpu": "realtime",
    "Encryption": "secret",
    "Filesystem": "path readonly",
    "Io": "device weight",
    "IoDevice": "path read_bytes read_operations weight write_bytes write_operations",
    "IothreadPin": "cpus",
    "Isolation": "exclusive strict",
    "Machine": "emulator",
    "Mdev": "parent type",
    "MemoryLimits": "hard soft swap",
    "Net": "managed mode vlan",
    "Nvme": "managed",
    "Pci": "allow managed sriov",
    "Sriov": "mac pf pool rate spoofchk trust vf vlan",
    "Plan": "bandwidth caches dedicated emulator idle",
    "Threads": "period priority quota scheduler",
    "Tuning": "emulator io iothreads memory shares total vcpus",
    "VcpuPin": "cpus vcpu",
    "VmSpec": "isolation tuning",
}
"""Keys that QEMU has no argument for: pins and limits are its starter's, the VLAN of a virtual
function is set on its physical one, and the emulator is the first word, which no concern writes.
"""

NOT_IN_XML: Final[Fields] = {
    "CpuInterface": "l3",
    "Encryption": "key",
    "Hardware": "has_run_with",
    "Machine": "sandbox",
    "Memory": "path",
    "Plan": "accel",
}
"""libvirt's own: its sandbox and its folder for memory are in qemu.conf, passphrases in its
secrets; it writes the accelerator as the domain's type, and knows no ``smp-cache``."""

SHARED: Final[Fields] = {
    "Backing": "share",
    "Balloon": "enabled",
    "Boot": "firmware secure_boot",
    "Cell": "id memory_kib",
    "Hardware": "backing clock interface layout security vhost",
    "Guest": "agent",
    "Input": "bus type",
    "IothreadPin": "id",
    "Layout": "places",
    "Machine": "type",
    "Net": "queues type",
    "Mdev": "uuid",
    "Pci": "managed sriov",
    "GuestPciAddress": "announces_others bus function slot",
    "Plan": "cells hardware iothreads spec vcpus",
    "Usb": "controller",
    "VmSpec": "balloon boot channel cpu guest host_usb input machine mdev memory name net pci usb",
}
"""Keys that several concerns read: where devices are, what others depend on; all else has one
module.
"""


@pytest.fixture(scope="module")
def in_argv() -> Mapping[str, set[str]]:
    return _readers(argv.CONCERNS, CASES)


@pytest.fixture(scope="module")
def in_xml() -> Mapping[str, set[str]]:
    cases = [case for case in CASES if golden_plan(*case).hardware.target.libvirt is not None]
    return _readers((*xml.PARTS, *xml.DEVICES, *xml.AFTER), cases)


def test_every_field_is_in_both_renderings(
    in_argv: Mapping[str, set[str]], in_xml: Mapping[str, set[str]]
) -> None:
    """Save for what is written down above, with its reason; and nothing there is rendered."""
    known = {f"{made.__name__}.{key.name}" for made in _classes(Plan) for key in _keys(made)}
    nowhere = _named(FOR_PEOPLE) | _named(THE_HOSTS) | _named(DECIDED)
    assert known - set(in_argv) - set(in_xml) == nowhere
    assert known - set(in_argv) - nowhere == _named(NOT_IN_ARGV)
    assert known - set(in_xml) - nowhere == _named(NOT_IN_XML)


def test_every_field_has_one_module(
    in_argv: Mapping[str, set[str]], in_xml: Mapping[str, set[str]]
) -> None:
    """A field is read by one concern's module in each rendering; what is shared is written down."""
    shared = {name for by in (in_argv, in_xml) for name, modules in by.items() if len(modules) > 1}
    assert shared == _named(SHARED)


def _named(fields: Fields) -> set[str]:
    return {f"{made}.{name}" for made, names in fields.items() for name in names.split()}


def _readers(
    concerns: Iterable[Callable[[Any], Any]], cases: Iterable[tuple[str, str]]
) -> dict[str, set[str]]:
    """Field: the modules that read it."""
    by: defaultdict[str, set[str]] = defaultdict(set)
    plans = [golden_plan(*case) for case in cases]
    for concern in concerns:
        for plan in plans:
            read: set[str] = set()
            concern(watch(plan, read))
            for name in read:
                by[name].add(concern.__module__)
    return by
