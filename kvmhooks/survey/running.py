"""The resources that the VMs of this host hold: their claims, or else the pins of their threads.

A domain without a claim of ours is known from libvirt's own record of it, the status file
``/run/libvirt/qemu/NAME.xml`` (``qemuDomainObjPrivateXMLFormatVcpus`` in src/qemu/qemu_domain.c
writes the thread of each vCPU there); where a vCPU may run now is asked of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lxml import etree

from kvmhooks.errors import HostError, IsolationError
from kvmhooks.inventory.usage import Holding, of_claim, of_pins
from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet

_DOMAINS: Final = "run/libvirt/qemu"
_SUFFIX: Final = ".xml"
_MAX_CHARACTERS: Final = 4 << 20


def live_holdings(root: str = "/") -> tuple[Holding, ...]:
    """Return what all VMs hold that run on the host below ``root``.

    Raises ``HostError`` where it may not be read, as for users other than root.
    """
    system = System(root)
    store = Store(root)
    try:
        held = Registry(system, store).look().held.values()
    except (IsolationError, OSError) as error:
        raise HostError(f"the holdings of VMs on this host cannot be read: {error}") from error
    finally:
        store.close()
    claimed = [of_claim(entry.claim, is_mapped=entry.state == RUNNING) for entry in held]
    known = {holding.uuid for holding in claimed}
    return (*claimed, *(holding for holding in _domains(system) if holding.uuid not in known))


def _domains(system: System) -> Iterator[Holding]:
    """Yield what libvirt's running domains hold, from their pins."""
    try:
        names = [name for name in system.names(_DOMAINS) if name.endswith(_SUFFIX)]
        online = CpuSet.parse(system.read("sys/devices/system/cpu/online"))
        texts = [system.read(f"{_DOMAINS}/{name}") for name in names]
    except OSError as error:
        raise HostError(f"/{_DOMAINS}: cannot be read: {error.strerror}") from error
    for name, text in zip(names, texts, strict=True):
        status = _parse(name, text)
        domain = status.find("domain")
        if status.tag != "domstatus" or domain is None:
            continue
        pins = [_affinity(system, vcpu.get("pid", "")) for vcpu in status.iterfind("vcpus/vcpu")]
        yield of_pins(
            [pin for pin in pins if pin],
            online,
            name=domain.findtext("name") or name.removesuffix(_SUFFIX),
            uuid=(domain.findtext("uuid") or "").strip().lower(),
        )


def _parse(name: str, text: str) -> etree._Element:
    if len(text) > _MAX_CHARACTERS:
        raise HostError(f"/{_DOMAINS}/{name}: found more than {_MAX_CHARACTERS} characters")
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        return etree.fromstring(text.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise HostError(f"/{_DOMAINS}/{name}: {error}") from error


def _affinity(system: System, thread: str) -> CpuSet:
    """Return where a thread may run; nowhere when it has ended meanwhile."""
    if not (thread.isascii() and thread.isdecimal()):
        return CpuSet()
    try:
        return system.affinity(int(thread))
    except (FileNotFoundError, ProcessLookupError):
        return CpuSet()
