"""The resources of a libvirt domain, by its XML: memory, devices, and pins if it does not run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import evolve

from kvmhooks.errors import KvmhooksError, PlanError, ValueFormatError
from kvmhooks.host.model import Host
from kvmhooks.host.system.resctrl import parse_schemata
from kvmhooks.inventory.usage import Holding, of_pins
from kvmhooks.isolate.claims.domain_xml import MAX_VCPUS, caches_of, devices_of
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE, memory_of
from kvmhooks.isolate.claims.hugepage_demand import of_domain as pages_of
from kvmhooks.isolate.claims.xml import Element
from kvmhooks.machine.confidential import KEYS
from kvmhooks.placement.cache_ways import ways_of
from kvmhooks.placement.search.capacity import LEAST_KEPT
from kvmhooks.spec.security import SEV_ES
from kvmhooks.values import CpuSet, PciAddress, union

FULL: Final = 100
"""The share of memory bandwidth of a group of resctrl that has no limit, in percent."""

_LEVEL: Final = 3
_L3: Final = ("L3", "L3CODE")
"""The resources whose masks count: code and data of a VM have the same (``placement.cache_ways``).
"""


def running(
    domain: Element,
    host: Host,
    threads: Mapping[int, CpuSet],
    schemata: Iterable[str] = (),
    *,
    keeps_siblings: bool = False,
) -> Holding:
    """Return what a running domain holds: its threads' CPUs, and what its XML says of the rest.

    ``threads`` has the CPUs of each vCPU that has a thread; one that can be plugged in has those
    that it will be pinned to. Its huge pages are mapped, so the kernel counts them as free no
    longer. ``schemata`` are those of its groups of resctrl. Raises ``KvmhooksError`` or
    ``ValueError`` for XML that is wrong.
    """
    pins = {**_pins(domain), **threads}
    ways, bandwidth = _shares(domain, schemata)
    return evolve(
        _on(pins, domain, host),
        keeps_siblings=keeps_siblings,
        memory=_memory(domain, host, union(pins.values())),
        ways=ways,
        bandwidth=bandwidth,
        pci=tuple(map(PciAddress.parse, devices_of(domain))),
        mdevs=_mdevs(domain),
        key=_key(domain),
        has_key=bool(_key(domain)),
    )


def pinned(
    domain: Element, host: Host, threads: Mapping[int, CpuSet], *, keeps_siblings: bool = False
) -> Holding:
    """Return what a running domain holds of CPUs alone, as far as its XML can be understood."""
    try:
        pins = {**_pins(domain), **threads}
    except (KvmhooksError, ValueError):
        pins = dict(threads)
    return evolve(_on(pins, domain, host), keeps_siblings=keeps_siblings)


def defined(
    domain: Element, host: Host, held: Sequence[Holding] = (), *, keeps_siblings: bool = False
) -> Holding:
    """Return what a domain would hold as it is defined, beside what is ``held``.

    Raises as ``running``, and ``PlanError`` for cache ways that it could not have.
    """
    pins = _pins(domain)
    return evolve(
        _on(pins, domain, host),
        keeps_siblings=keeps_siblings,
        memory=_memory(domain, host, union(pins.values())),
        hugepages=tuple(
            (pages.node, pages.size_kib, pages.count)
            for pages in pages_of(domain)
            if pages.size_kib
        ),
        ways=_ways(domain, host, held),
        bandwidth=_bandwidth(domain),
        pci=tuple(map(PciAddress.parse, devices_of(domain))),
        mdevs=_mdevs(domain),
        key=_key(domain),
    )


def identity_of(domain: Element) -> str:
    """Return the UUID of a domain."""
    return domain.findtext("uuid").strip().lower()


def _on(pins: Mapping[int, CpuSet], domain: Element, host: Host) -> Holding:
    """Return the CPUs of a domain whose vCPUs may run there."""
    name, identity = domain.findtext("name").strip(), identity_of(domain)
    held = of_pins(pins.values(), host.online, name=name, uuid=identity)
    return evolve(held, helpers=_helpers(domain, host, held.dedicated))


def _helpers(domain: Element, host: Host, own: CpuSet) -> CpuSet:
    """Return the CPUs chosen for QEMU's other threads beside dedicated vCPUs; empty for none.

    They are chosen when the vCPUs are not among them, and there are few: a reserve on each node, or
    up to half of it. Threads that may run nearly anywhere have no place that others would leave.
    """
    pin = domain.find("cputune/emulatorpin")
    if pin is None or not own:
        return CpuSet()
    try:
        cpus = CpuSet.parse(pin.get("cpuset")) & host.online
    except ValueFormatError:
        return CpuSet()
    most = max(LEAST_KEPT, *(len(host.core_of(cpu)) for cpu in host.online))
    nodes = [node.cpus or CpuSet() for node in host.nodes or ()] or [host.online]
    is_few = all(len(cpus & node) <= max(most, len(node) // 2) for node in nodes)
    return cpus if is_few and cpus.isdisjoint(own) else CpuSet()


def _pins(domain: Element) -> dict[int, CpuSet]:
    """Return the CPUs of each vCPU by its ``<vcpupin>``, else by ``<vcpu cpuset=>``, if either.

    Those that can be plugged in are among them: libvirt keeps their pins
    (``virDomainCputuneDefFormat()``, src/conf/domain_conf.c).
    """
    vcpu = domain.find("vcpu")
    text = "" if vcpu is None else vcpu.text.strip()
    count = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    whole = "" if vcpu is None else vcpu.get("cpuset")
    others = CpuSet.parse(whole) if whole else CpuSet()
    own = {
        pin.get("vcpu"): CpuSet.parse(pin.get("cpuset"))
        for pin in domain.findall("cputune/vcpupin")
    }
    found = {number: own.get(str(number), others) for number in range(min(count, MAX_VCPUS))}
    return {number: cpus for number, cpus in found.items() if cpus}


def _ways(domain: Element, host: Host, held: Sequence[Holding]) -> tuple[tuple[int, int], ...]:
    """Return the L3 ways that libvirt would find for a domain where the planner would.

    They are none on a host whose caches were not looked at, for then nobody else asks for any.
    Raises ``PlanError`` when there are not so many.
    """
    sizes = {cache.id: cache.size_kib for cache in host.caches or () if cache.level == _LEVEL}
    wanted: dict[int, int] = {}
    for level, _, cache, kib in caches_of(domain):
        if level == _LEVEL and sizes.get(cache):
            wanted[cache] = max(wanted.get(cache, 0), kib)
    if not wanted or host.resctrl is None or not host.resctrl.mounted:
        return ()
    ways = ways_of(host, held)
    total = max((allocation.mask or 1).bit_count() for allocation in ways.allocations)
    found = []
    for cache, kib in sorted(wanted.items()):
        count = -(-kib * total // (sizes[cache] or 1))
        mask = ways.choose(cache, count)
        if mask is None:
            raise PlanError("cachetune", f"{count} ways of L3 {cache}", "as many that are free")
        found.append((cache, mask))
    return tuple(found)


def _bandwidth(domain: Element) -> tuple[tuple[int, int], ...]:
    """Return the memory bandwidth of a definition (``<memorytune>``) by L3 cache, in percent."""
    shares: Counter[int] = Counter()
    for node in domain.findall("cputune/memorytune/node"):
        cache, percent = (_number(node.get(key), key) for key in ("id", "bandwidth"))
        if percent < FULL:
            shares[cache] += percent
    return tuple(sorted(shares.items()))


def _number(text: str, key: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError(f"memorytune: {key}: found {text!r:.20}, expected a number")
    return int(text)


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
