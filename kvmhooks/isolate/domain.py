"""A libvirt domain XML into the claim that it makes on the host.

The XML alone says everything: the pins are libvirt's own ``<cputune>``, the nodes ``<numatune>``,
the pages ``<memoryBacking>`` (https://libvirt.org/formatdomain.html), and the policy is the
``<kvmhooks:vm>`` element in ``<metadata>`` (``kvmhooks.isolate.policy``). A domain without that
element makes no claim.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, ValueFormatError
from kvmhooks.isolate import configuration, markup, pages
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.policy import NAMESPACE, check, value_of
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.markup import Element

MAX_BYTES: Final = markup.MAX_BYTES
MAX_VCPUS: Final = 65_536
_POLICY: Final = f"metadata/{{{NAMESPACE}}}vm"
"""The path of our element."""


def read_claim(
    xml_text: str | bytes, driver: str = "qemu", door: Door | None = None
) -> Claim | None:
    """The claim that a domain makes, or None for a domain that is none of ours.

    It is ours by our metadata or, on a host (``door``), by a file of its name in /etc.

    Raises ``IsolationError`` for XML that is no domain, is too large, has a document type, or whose
    policy cannot be met by its own pins; the text says what to do.
    """
    data = xml_text.encode() if isinstance(xml_text, str) else xml_text
    has_files = door is not None and door.has(configuration.VMS)
    if NAMESPACE.encode() not in data[:MAX_BYTES] and not has_files:
        return None
    domain = _parse(data)
    policy = _policy_of(domain)
    if policy is None and not has_files:
        return None
    name = _name_of(domain)
    settings = _settled(policy, name, door)
    if settings is None:
        return None
    is_exclusive = settings.pop("isolation.exclusive", "no") == "yes"
    is_strict = settings.pop("isolation.strict", "no") == "yes"
    if "threads.vcpus" in settings and not is_exclusive:
        raise IsolationError(
            f"domain {name}: threads.vcpus: found {settings['threads.vcpus']!r} without exclusive "
            "CPUs: whatever shares a CPU with such a vCPU would starve: set isolation.exclusive"
        )
    kept = tuple(sorted(settings.items()))
    has_pages = value_of(kept, "memory.hugepages") == "allocate"
    has_storage = any(setting.startswith("storage.") for setting in settings)
    bound = _devices_of(domain, is_bound=True) if settings.get("devices.managed") == "yes" else ()
    try:
        return Claim(
            driver=driver,
            uuid=domain.findtext("uuid").strip().lower(),
            name=name,
            exclusive=_exclusive_of(domain, name) if is_exclusive else CpuSet(),
            hugepages=pages.of_domain(domain) if has_pages else (),
            strict=is_strict,
            settings=kept,
            disks=_disks_of(domain) if has_storage else (),
            caches=_caches_of(domain),
            devices=_devices_of(domain) if is_exclusive or bound else (),
            bound=bound,
        )
    except ValueFormatError as error:
        raise IsolationError(f"domain {name}: {error}") from error


def has_policy(data: bytes) -> bool:
    """Return whether a domain has our element in its metadata, also one that cannot be used."""
    return markup.holds(data, f"domain/{_POLICY}")


def read_key(xml_text: str | bytes, driver: str = "qemu") -> str:
    """The key of the claim that a domain may hold, whatever its policy says by now.

    Raises ``IsolationError`` for XML that is no domain.
    """
    data = xml_text.encode() if isinstance(xml_text, str) else xml_text
    return f"{driver}-{_parse(data).findtext('uuid', '').strip().lower()}"


def devices_in(status: bytes) -> tuple[str, ...]:
    """The PCI addresses of what a running VM has, by what libvirt keeps of it (``<domstatus>``).

    Raises ``IsolationError`` for what is none.
    """
    found = markup.parse(status).find("domain")
    if found is None:
        raise IsolationError("found no <domain>, expected libvirt's record of a running VM")
    return _devices_of(found)


def _parse(data: bytes) -> Element:
    domain = markup.parse(data)
    if domain.tag != "domain":
        raise IsolationError(f"domain XML: found <{domain.tag[:40]}>, expected <domain>")
    return domain


def _policy_of(domain: Element) -> dict[str, str] | None:
    """The attributes of all children of ``<kvmhooks:vm>``, or None without that element."""
    element = domain.find(_POLICY)
    if element is None:
        return None
    policy = {}
    for child in element:
        tag = child.tag.removeprefix(f"{{{NAMESPACE}}}")
        for attribute, value in child.attributes.items():
            policy[f"{tag}.{attribute}"] = value.strip()
    return policy


def _settled(
    policy: Mapping[str, str] | None, name: str, door: Door | None
) -> dict[str, str] | None:
    """What holds for a VM: its metadata, then its file, then the host's; None if it is not ours."""
    said = dict(policy or {})
    checked = check(said)
    if door is None:
        return checked
    own = configuration.policy_of(door, name)
    if policy is None and own is None:
        return None
    return check(configuration.defaults(door) | (own or {}) | said)


def _name_of(domain: Element) -> str:
    name = domain.findtext("name")
    is_safe = 0 < len(name) <= 255 and "/" not in name and min(name) >= " "
    if not is_safe or name in {".", ".."}:
        raise IsolationError(f"domain XML: name: found {name[:40]!r}, expected a libvirt name")
    return name


def _exclusive_of(domain: Element, name: str) -> CpuSet:
    """The CPUs of all vCPUs.

    Each vCPU needs one CPU of its own: in an isolated partition nothing balances, so that threads
    with a wider mask all stay on the first CPU of it; and what else QEMU runs must be elsewhere.
    """
    for path in ("vcpu", "numatune/memory"):
        element = domain.find(path)
        if element is not None and element.get("placement") == "auto":
            raise IsolationError(
                f"domain {name}: <{element.tag} placement='auto'>: numad chooses after the hook "
                f"ran; exclusive CPUs need pins: run `kvmhooks tune {name}`"
            )
    pins: dict[int, CpuSet] = {}
    for pin in domain.findall("cputune/vcpupin"):
        vcpu = _number(pin.get("vcpu"), f"domain {name}: vcpupin")
        pins[vcpu] = CpuSet.parse(pin.get("cpuset"))
    count = _number(domain.findtext("vcpu", "1"), f"domain {name}: vcpu")
    if not 0 < count <= MAX_VCPUS:
        raise IsolationError(f"domain {name}: vcpu: found {count}, expected 1 to {MAX_VCPUS}")
    for vcpu in range(count):
        if len(pins.get(vcpu, ())) != 1:
            found = pins[vcpu].brief() if vcpu in pins else "no pin"
            raise IsolationError(
                f"domain {name}: vCPU {vcpu}: found {found}, expected one CPU of its own for "
                f"exclusive CPUs: run `virsh vcpupin {name} {vcpu} CPU --config`, or "
                f"`kvmhooks tune {name}` for all"
            )
    exclusive = union(pins[vcpu] for vcpu in range(count))
    if len(exclusive) != count:
        raise IsolationError(
            f"domain {name}: {count} vCPUs share the {len(exclusive)} CPUs "
            f"{exclusive.brief()}, expected "
            f"one CPU each: run `kvmhooks tune {name}`"
        )
    _check_others(domain, name, exclusive)
    return exclusive


def _check_others(domain: Element, name: str, exclusive: CpuSet) -> None:
    """The emulator and each I/O thread have a pin, and none on the vCPUs' CPUs."""
    emulator = domain.find("cputune/emulatorpin")
    cpus = None if emulator is None else CpuSet.parse(emulator.get("cpuset"))
    _check_apart("emulatorpin", f"virsh emulatorpin {name} CPUS --config", cpus, exclusive, name)
    pins: dict[int, CpuSet] = {}
    for pin in domain.findall("cputune/iothreadpin"):
        iothread = _number(pin.get("iothread"), f"domain {name}: iothreadpin")
        pins[iothread] = CpuSet.parse(pin.get("cpuset"))
    for iothread in sorted(_iothreads_of(domain, name)):
        _check_apart(
            f"iothreadpin {iothread}",
            f"virsh iothreadpin {name} {iothread} CPUS --config",
            pins.get(iothread),
            exclusive,
            name,
        )


def _check_apart(what: str, remedy: str, cpus: CpuSet | None, exclusive: CpuSet, name: str) -> None:
    if cpus and cpus.isdisjoint(exclusive):
        return
    found = f"{cpus.brief()}, on the vCPUs' own" if cpus else "none"
    raise IsolationError(
        f"domain {name}: {what}: found {found}, expected CPUs apart from "
        f"{exclusive.brief()}: run `{remedy}`, or `kvmhooks tune {name}`"
    )


def _iothreads_of(domain: Element, name: str) -> set[int]:
    """The ids of I/O threads: those listed, and as many more as the count asks for.

    libvirt fills ``<iothreadids>`` up to ``<iothreads>`` with the lowest free numbers
    (``virDomainIOThreadIDDefArrayInit()``, src/conf/domain_conf.c).
    """
    what = f"domain {name}: iothread"
    listed = {_number(one.get("id"), what) for one in domain.findall("iothreadids/iothread")}
    count = _number(domain.findtext("iothreads", "0"), what)
    if count > MAX_VCPUS:
        raise IsolationError(f"{what}s: found {count}, expected at most {MAX_VCPUS}")
    fresh = 1
    while len(listed) < count:
        listed.add(fresh)
        fresh += 1
    return listed


def _disks_of(domain: Element) -> tuple[str, ...]:
    """The block devices of the VM's disks (``<disk type='block'>``), in order."""
    sources = (
        disk.find("source")
        for disk in domain.findall("devices/disk")
        if disk.get("type") == "block"
    )
    return tuple(
        source.get("dev") for source in sources if source is not None and source.get("dev")
    )


def _devices_of(domain: Element, *, is_bound: bool = False) -> tuple[str, ...]:
    """The PCI addresses of what the VM is given: ``<hostdev>``, also as a network interface.

    With ``is_bound`` only those that libvirt leaves to others to bind to ``vfio-pci``, which is
    what it does without ``managed='yes'``; NVMe controllers of disks are then among them.
    """
    found = []
    given = [one for one in domain.findall("devices/hostdev") if one.get("type") == "pci"]
    given += [one for one in domain.findall("devices/interface") if one.get("type") == "hostdev"]
    sources = [(one.get("managed"), one.findall("source/address")) for one in given]
    if is_bound:
        disks = [one for one in domain.findall("devices/disk") if one.get("type") == "nvme"]
        nvme = [source for disk in disks for source in disk.findall("source")]
        sources += [(one.get("managed"), one.findall("address")) for one in nvme]
        sources = [(managed, addresses) for managed, addresses in sources if managed != "yes"]
    for _, addresses in sources:
        for address in addresses:
            parts = (address.get(name, "0") for name in ("domain", "bus", "slot", "function"))
            try:
                found.append("{:04x}:{:02x}:{:02x}.{:x}".format(*(int(part, 0) for part in parts)))
            except ValueError:  # libvirt itself refuses it
                continue
    return tuple(dict.fromkeys(found))


def _caches_of(domain: Element) -> tuple[tuple[int, str, int, int], ...]:
    """The parts of caches that libvirt gives it (``<cachetune>``), in order."""
    return tuple(
        (
            _number(cache.get("level"), "domain XML: cache level"),
            cache.get("type") if cache.get("type") in {"code", "data"} else "both",
            _number(cache.get("id"), "domain XML: cache id"),
            pages.kib(cache.get("size"), cache.get("unit", "B"), "cache"),
        )
        for cache in domain.findall("cputune/cachetune/cache")
    )


def _number(text: str, what: str) -> int:
    number = text.strip()
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise IsolationError(f"{what}: found {text[:40]!r}, expected a number")
    return int(number)
