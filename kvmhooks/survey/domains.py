"""The resources of a libvirt domain, by its XML: memory, devices, and pins if it does not run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from attrs import evolve

from kvmhooks.host.model import Host
from kvmhooks.host.system.resctrl import parse_schemata
from kvmhooks.inventory.usage import Holding, of_pins
from kvmhooks.isolate.claims.domain_xml import MAX_VCPUS, devices_of
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE, memory_of
from kvmhooks.isolate.claims.hugepage_demand import of_domain as pages_of
from kvmhooks.isolate.claims.xml import Element
from kvmhooks.machine.confidential import KEYS
from kvmhooks.spec.security import SEV_ES
from kvmhooks.values import CpuSet, PciAddress, union

FULL: Final = 100
"""The share of memory bandwidth of a group of resctrl that has no limit, in percent."""

_L3: Final = ("L3", "L3CODE")
"""The resources whose masks count: code and data of a VM have the same (``placement.cache_ways``).
"""


def running(
    domain: Element, host: Host, pins: Iterable[CpuSet], schemata: Iterable[str] = ()
) -> Holding:
    """Return what a running domain holds: its threads' CPUs, and what its XML says of the rest.

    Its huge pages are mapped, so the kernel counts them as free no longer. ``schemata`` are those
    of its groups of resctrl. Raises ``KvmhooksError`` or ``ValueError`` for XML that is wrong.
    """
    known = [pin for pin in pins if pin]
    held = pinned(domain, host, known)
    ways, bandwidth = _shares(domain, schemata)
    return evolve(
        held,
        memory=_memory(domain, host, union(known)),
        ways=ways,
        bandwidth=bandwidth,
        pci=tuple(map(PciAddress.parse, devices_of(domain))),
        mdevs=_mdevs(domain),
        key=_key(domain),
        has_key=bool(_key(domain)),
    )


def pinned(domain: Element, host: Host, pins: Iterable[CpuSet]) -> Holding:
    """Return what a running domain holds by its threads' CPUs alone."""
    name, identity = _named(domain)
    return of_pins([pin for pin in pins if pin], host.online, name=name, uuid=identity)


def defined(domain: Element, host: Host) -> Holding:
    """Return what a domain would hold as it is defined. Raises as ``running``."""
    name, identity = _named(domain)
    pins = _pins(domain)
    return evolve(
        of_pins(pins, host.online, name=name, uuid=identity),
        memory=_memory(domain, host, union(pins)),
        hugepages=tuple(
            (pages.node, pages.size_kib, pages.count)
            for pages in pages_of(domain)
            if pages.size_kib
        ),
        pci=tuple(map(PciAddress.parse, devices_of(domain))),
        mdevs=_mdevs(domain),
        key=_key(domain),
    )


def _named(domain: Element) -> tuple[str, str]:
    return domain.findtext("name").strip(), domain.findtext("uuid").strip().lower()


def _pins(domain: Element) -> list[CpuSet]:
    """Return the CPUs of each vCPU by its ``<vcpupin>``, else by ``<vcpu cpuset=>``."""
    vcpu = domain.find("vcpu")
    text = "" if vcpu is None else vcpu.text.strip()
    count = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    whole = "" if vcpu is None else vcpu.get("cpuset")
    others = CpuSet.parse(whole) if whole else CpuSet()
    own = {
        pin.get("vcpu"): CpuSet.parse(pin.get("cpuset"))
        for pin in domain.findall("cputune/vcpupin")
    }
    found = (own.get(str(number), others) for number in range(min(count, MAX_VCPUS)))
    return [cpus for cpus in found if cpus]


def _memory(domain: Element, host: Host, cpus: CpuSet) -> tuple[tuple[int, int], ...]:
    """Return the ordinary memory on each node: where it is bound to, else near its CPUs.

    The kernel gives a task memory of the node on which it runs
    (Documentation/admin-guide/mm/numa_memory_policy.rst, «System Default Policy»).
    """
    wanted = Counter(memory_of(domain))
    loose = wanted.pop(ANY_NODE, 0)
    near = {host.cpu(cpu).node for cpu in cpus & host.online} - {None}
    nodes = sorted(node for node in near if node is not None) or [ANY_NODE]
    for at, node in enumerate(nodes):
        wanted[node] += loose * (at + 1) // len(nodes) - loose * at // len(nodes)
    return tuple(sorted((node, kib) for node, kib in wanted.items() if kib))


def _key(domain: Element) -> str:
    """Return the kind of key of an encrypted guest; empty for another.

    A policy is hexadecimal, with and without ``0x`` (``hexuint``, schemas/basictypes.rng).
    """
    security = domain.find("launchSecurity")
    kind = "" if security is None else security.get("type")
    policy = domain.findtext("launchSecurity/policy").strip()
    if kind == "sev" and re.fullmatch("(0x)?[0-9a-fA-F]{1,8}", policy) and int(policy, 16) & SEV_ES:
        kind = "sev-es"
    return KEYS.get(kind, "")


def _mdevs(domain: Element) -> tuple[str, ...]:
    """Return the UUIDs of mediated devices (https://libvirt.org/formatdomain.html#usb-pci-scsi-devices)."""
    return tuple(
        address.get("uuid").strip().lower()
        for device in domain.findall("devices/hostdev")
        if device.get("type") == "mdev"
        for address in device.findall("source/address")
    )


def _shares(
    domain: Element, schemata: Iterable[str]
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Return the L3 ways and the memory bandwidth that its groups of resctrl have.

    A group that is there for one of the two has all of the other, as the host's has.
    """
    named = {cache.get("id") for cache in domain.findall("cputune/cachetune/cache")}
    ways: Counter[int] = Counter()
    bandwidth: Counter[int] = Counter()
    for text in schemata:
        told: Mapping[str, Mapping[int, str]] = parse_schemata(text)
        for resource in _L3:
            for cache, mask in told.get(resource, {}).items():
                if str(cache) in named:
                    ways[cache] |= int(mask, 16)
        for cache, percent in told.get("MB", {}).items():
            if percent.isdecimal() and int(percent) < FULL:
                bandwidth[cache] += int(percent)
    return tuple(sorted(ways.items())), tuple(sorted(bandwidth.items()))
