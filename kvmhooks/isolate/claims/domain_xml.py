"""A libvirt domain XML into the claim that it makes on the host.

The XML alone says everything: the pins are libvirt's own ``<cputune>``, the nodes ``<numatune>``,
the pages ``<memoryBacking>`` (https://libvirt.org/formatdomain.html), and the policy is the
``<kvmhooks:vm>`` element in ``<metadata>`` (``kvmhooks.policy``). A domain without
that element makes no claim.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, ValueFormatError
from kvmhooks.isolate.claims import administrator, hugepage_demand, xml
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.kinds.kind import from_settings
from kvmhooks.policy import NAMESPACE, check, value_of
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from kvmhooks.isolate.claims.xml import Element
    from kvmhooks.isolate.kinds.kind import Demand
    from kvmhooks.isolate.system.system import System

MAX_BYTES: Final = xml.MAX_BYTES
MAX_VCPUS: Final = 65_536
_PINS: Final = ("vcpupin", "emulatorpin", "iothreadpin")
_POLICY: Final = f"metadata/{{{NAMESPACE}}}vm"
"""The path of our element."""


def read_claim(
    xml_text: str | bytes, driver: str = "qemu", system: System | None = None
) -> Claim | None:
    """Return the claim that a domain makes, or None for a domain that is none of ours.

    It is ours by our metadata or, on a host (``system``), by a file of its name in /etc.

    Raises ``IsolationError`` for XML that is no domain, is too large, has a document type, or whose
    policy cannot be met by its own pins; the text says what to do.
    """
    data = xml_text.encode() if isinstance(xml_text, str) else xml_text
    has_files = system is not None and system.has(administrator.VMS)
    if NAMESPACE.encode() not in data[:MAX_BYTES] and not has_files:
        return None
    domain = _parse(data)
    policy = _policy_of(domain)
    if policy is None and not has_files:
        return None
    name = _name_of(domain)
    settled = _settled(policy, name, system)
    if settled is None:
        return None
    settings, origins = settled
    is_exclusive = settings.pop("isolation.exclusive", "no") == "yes"
    is_strict = settings.pop("isolation.strict", "no") == "yes"
    if "threads.vcpus" in settings and not is_exclusive:
        raise IsolationError(
            f"domain {name}: threads.vcpus: found {settings['threads.vcpus']!r} without exclusive "
            "CPUs: any task on a CPU of such a vCPU would starve: set isolation.exclusive"
        )
    bound = _devices_of(domain, is_bound=True) if settings.get("devices.managed") == "yes" else ()
    demands = _demands_of(settings, bound)
    kept = tuple(sorted(settings.items()))
    has_pages = value_of(kept, "memory.hugepages") == "allocate"
    has_storage = any(setting.startswith("storage.") for setting in settings)
    try:
        return Claim(
            driver=driver,
            uuid=domain.findtext("uuid").strip().lower(),
            name=name,
            exclusive=_exclusive_of(domain, name) if is_exclusive else CpuSet(),
            strict=is_strict,
            settings=kept,
            origins=origins,
            disks=_disks_of(domain) if has_storage else (),
            caches=caches_of(domain),
            devices=_devices_of(domain) if is_exclusive or bound else (),
            demands=[*demands, *(hugepage_demand.of_domain(domain) if has_pages else ())],
        )
    except ValueFormatError as error:
        raise IsolationError(f"domain {name}: {error}") from error


def _demands_of(settings: dict[str, str], bound: tuple[str, ...]) -> list[Demand]:
    """Return what is asked for besides memory; the settings that say so are taken out of those."""
    demands = [*from_settings(settings)]
    allow = settings.pop("devices.allow", "none").split(",")
    if bound:
        from kvmhooks.isolate.kinds.bound_functions import FunctionDemand  # noqa: PLC0415 -- few have

        demands += [FunctionDemand(at, [use for use in allow if use != "none"]) for at in bound]
    return demands


def without_effect(data: bytes, system: System) -> list[str]:
    """Return a sentence for each setting that a VM says and that does nothing for it.

    The VM says what its metadata and its own file do; the administrator's settings for all VMs are
    for those that they fit. ``data`` is a domain, or libvirt's record of a running one.

    Raises ``IsolationError``.
    """
    domain = _domain_of(data)
    name = _name_of(domain)
    own = administrator.policy_of(system, name) or {}
    metadata = _policy_of(domain) or {}
    asked = check(own | metadata)
    if not asked.keys() - {"isolation.exclusive"}:
        return []
    from kvmhooks.isolate.claims import effects  # noqa: PLC0415 -- most VMs say nothing else

    vm = effects.VmFacts(
        check(administrator.defaults(system) | own | metadata),
        has_bound=bool(_devices_of(domain, is_bound=True)),
        has_devices=bool(_devices_of(domain)),
        has_disks=bool(_disks_of(domain)),
        has_hugepages=bool(hugepage_demand.of_domain(domain)),
        is_pinned=_is_pinned(domain),
    )
    return [*effects.without_effect(asked, vm)]


def has_policy(data: bytes) -> bool:
    """Return whether a domain has our element in its metadata, also one that cannot be used."""
    return xml.holds(data, f"domain/{_POLICY}")


def read_key(xml_text: str | bytes, driver: str = "qemu") -> str:
    """Return the key of the claim that a domain may hold, whatever its policy says by now.

    Raises ``IsolationError`` for XML that is no domain.
    """
    data = xml_text.encode() if isinstance(xml_text, str) else xml_text
    return f"{driver}-{_parse(data).findtext('uuid', '').strip().lower()}"


def devices_of(domain: Element) -> tuple[str, ...]:
    """Return the PCI addresses of all that a domain has, NVMe controllers of disks too."""
    return _devices_of(domain, has_disks=True)


def devices_in(status: bytes) -> tuple[str, ...]:
    """Return the PCI addresses of a running VM's devices, by libvirt's record (``<domstatus>``).

    Raises ``IsolationError`` for what is none.
    """
    return _devices_of(_domain_of(status))


def settings_of(domain: Element, system: System) -> dict[str, str]:
    """Return the settings of a domain of ours, as its start has them; none of any other's.

    Raises ``IsolationError``.
    """
    settled = _settled(_policy_of(domain), _name_of(domain), system)
    return {} if settled is None else settled[0]


def is_placed(data: bytes) -> bool:
    """Return whether a domain names the group that it comes into, another than libvirt's own.

    ``<resource><partition>``, https://libvirt.org/cgroups.html. Raises ``IsolationError``.
    """
    if b"<partition" not in data:
        return False
    return _parse(data).findtext("resource/partition").strip() not in {"", "/machine"}


def pins_in(status: bytes) -> tuple[int, list[CpuSet]]:
    """Return QEMU's process, and what libvirt will pin its threads to, by the same record.

    Raises ``IsolationError`` or ``ValueFormatError`` for what is none.
    """
    record = xml.parse(status)
    domain, pid = record.find("domain"), record.get("pid")
    if domain is None or not pid.isdecimal():
        raise IsolationError("found no <domain> or no pid, expected a running VM's record")
    pinned = [pin for what in _PINS for pin in domain.findall(f"cputune/{what}")]
    pinned += [*domain.findall("vcpu"), *record.findall("numad")]
    return int(pid), [CpuSet.parse(pin.get("cpuset")) for pin in pinned if pin.get("cpuset")]


def _parse(data: bytes) -> Element:
    domain = xml.parse(data)
    if domain.tag != "domain":
        raise IsolationError(f"domain XML: found <{domain.tag[:40]}>, expected <domain>")
    return domain


def _domain_of(data: bytes) -> Element:
    """Return a domain, or the one in libvirt's record of a running VM."""
    found = xml.parse(data)
    domain = found if found.tag == "domain" else found.find("domain")
    if domain is None:
        raise IsolationError("found no <domain>, expected libvirt's record of a running VM")
    return domain


def _policy_of(domain: Element) -> dict[str, str] | None:
    """Return the attributes of all children of ``<kvmhooks:vm>``, or None without that element."""
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
    policy: Mapping[str, str] | None, name: str, system: System | None
) -> tuple[dict[str, str], tuple[tuple[str, str], ...]] | None:
    """Return a VM's settings: its metadata, its file, then the host's; None if it is not ours.

    With them the files of those that are not its metadata's.
    """
    metadata = dict(policy or {})
    checked = check(metadata)
    if system is None:
        return checked, ()
    own = administrator.policy_of(system, name)
    if policy is None and own is None:
        return None
    defaults = administrator.defaults(system)
    checked = check(defaults | (own or {}) | metadata)
    files = dict.fromkeys(defaults, f"/{administrator.HOST}")
    files |= dict.fromkeys(own or (), f"/{administrator.file_of(name)}")
    origins = {each: files[each] for each in checked if each in files and each not in metadata}
    return checked, tuple(sorted(origins.items()))


def _name_of(domain: Element) -> str:
    name = domain.findtext("name")
    is_safe = 0 < len(name) <= 255 and "/" not in name and min(name) >= " "
    if not is_safe or name in {".", ".."}:
        raise IsolationError(f"domain XML: name: found {name[:40]!r}, expected a libvirt name")
    return name


def _exclusive_of(domain: Element, name: str) -> CpuSet:
    """Return the CPUs of all vCPUs.

    Each vCPU needs one CPU of its own: in an isolated partition nothing balances, so that threads
    with a wider mask all stay on the first CPU of it; and QEMU's other threads must be elsewhere.
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


def _is_pinned(domain: Element) -> bool:
    """Return whether a vCPU is pinned to one CPU."""
    return any(pin.get("cpuset").strip().isdecimal() for pin in domain.findall("cputune/vcpupin"))


def _check_others(domain: Element, name: str, exclusive: CpuSet) -> None:
    """Refuse an emulator or an I/O thread without a pin, or with one on the vCPUs' CPUs."""
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
    """Return the ids of I/O threads: those listed, and as many more as the count asks for.

    libvirt fills ``<iothreadids>`` up to ``<iothreads>`` with the lowest free numbers
    (``virDomainIOThreadIDDefArrayInit()``, src/conf/domain_conf.c).
    """
    what = f"domain {name}: iothread"
    listed = {
        _number(iothread.get("id"), what) for iothread in domain.findall("iothreadids/iothread")
    }
    count = _number(domain.findtext("iothreads", "0"), what)
    if count > MAX_VCPUS:
        raise IsolationError(f"{what}s: found {count}, expected at most {MAX_VCPUS}")
    fresh = 1
    while len(listed) < count:
        listed.add(fresh)
        fresh += 1
    return listed


def _disks_of(domain: Element) -> tuple[str, ...]:
    """Return the block devices of the VM's disks (``<disk type='block'>``), in order."""
    sources = (
        disk.find("source")
        for disk in domain.findall("devices/disk")
        if disk.get("type") == "block"
    )
    return tuple(
        source.get("dev") for source in sources if source is not None and source.get("dev")
    )


def _devices_of(
    domain: Element, *, is_bound: bool = False, has_disks: bool = False
) -> tuple[str, ...]:
    """Return the PCI addresses of the VM's devices: ``<hostdev>``, also as a network interface.

    With ``has_disks`` NVMe controllers of disks are among them, and with ``is_bound``, which gives
    only those that libvirt leaves to others to bind to ``vfio-pci``: it does so without
    ``managed='yes'``.
    """
    found = []
    given = [
        hostdev for hostdev in domain.findall("devices/hostdev") if hostdev.get("type") == "pci"
    ]
    given += [
        interface
        for interface in domain.findall("devices/interface")
        if interface.get("type") == "hostdev"
    ]
    sources = [(device.get("managed"), device.findall("source/address")) for device in given]
    if is_bound or has_disks:
        disks = [disk for disk in domain.findall("devices/disk") if disk.get("type") == "nvme"]
        nvme = [source for disk in disks for source in disk.findall("source")]
        sources += [(source.get("managed"), source.findall("address")) for source in nvme]
    if is_bound:
        sources = [(managed, addresses) for managed, addresses in sources if managed != "yes"]
    for _, addresses in sources:
        for address in addresses:
            parts = (address.get(name, "0") for name in ("domain", "bus", "slot", "function"))
            try:
                found.append("{:04x}:{:02x}:{:02x}.{:x}".format(*(int(part, 0) for part in parts)))
            except ValueError:  # libvirt itself refuses it
                continue
    return tuple(dict.fromkeys(found))


def caches_of(domain: Element) -> tuple[tuple[int, str, int, int], ...]:
    """Return the parts of caches that libvirt gives it (``<cachetune>``), in order."""
    return tuple(
        (
            _number(cache.get("level"), "domain XML: cache level"),
            cache.get("type") if cache.get("type") in {"code", "data"} else "both",
            _number(cache.get("id"), "domain XML: cache id"),
            hugepage_demand.kib(cache.get("size"), cache.get("unit", "B"), "cache"),
        )
        for cache in domain.findall("cputune/cachetune/cache")
    )


def _number(text: str, what: str) -> int:
    number = text.strip()
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise IsolationError(f"{what}: found {text[:40]!r}, expected a number")
    return int(number)
