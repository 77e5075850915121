"""The resources that VMs hold here: by their claims, and libvirt's domains by its records.

A running domain is known from libvirt's own record of it, the status file
``/run/libvirt/qemu/NAME.xml`` (``qemuDomainObjPrivateXMLFormatVcpus`` in src/qemu/qemu_domain.c
writes the thread of each vCPU there); where a vCPU may run now is asked of the kernel. A domain
that is only defined is in ``/etc/libvirt/qemu``, and the links in ``autostart`` there name those
that start with the host (``virDomainSetAutostart``, src/qemu/qemu_driver.c).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from kvmhooks.errors import HostError, IsolationError, KvmhooksError, words_of
from kvmhooks.host.model import Host
from kvmhooks.inventory.usage import Holding, of_claim
from kvmhooks.isolate.claims import xml
from kvmhooks.isolate.claims.domain_xml import settings_of
from kvmhooks.isolate.claims.xml import Element
from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
from kvmhooks.survey import domains
from kvmhooks.values import CpuSet

_RUNNING: Final = "run/libvirt/qemu"
_DEFINED: Final = "etc/libvirt/qemu"
_AUTOSTART: Final = f"{_DEFINED}/autostart"
_RESCTRL: Final = "sys/fs/resctrl"
_SUFFIX: Final = ".xml"


def claimed(registry: Registry) -> list[Holding]:
    """Return what the VMs hold that have a claim and live, or are awaited. Raises ``HostError``."""
    try:
        state = registry.look()
        gone = registry.ended(state)
        awaited = [claim for claim in registry.claims() if claim.key not in state.held]
    except (IsolationError, OSError) as error:
        raise HostError(
            f"the holdings of VMs on this host cannot be read: {words_of(error)}"
        ) from error
    finally:
        registry.store.close()
    held = [entry for key, entry in state.held.items() if key not in gone]
    return [
        *(of_claim(entry.claim, is_mapped=entry.state == RUNNING) for entry in held),
        *map(of_claim, awaited),
    ]


def running_domains(system: System, host: Host) -> tuple[list[Holding], list[str]]:
    """Return what libvirt's running domains hold, and what is wrong with records of others.

    Of a domain whose XML is odd its vCPUs' CPUs count all the same. Raises ``HostError`` for a
    record that may not be read.
    """
    found: list[Holding] = []
    problems: list[str] = []
    groups: list[str] | None = None
    for name, document in _documents(system, _RUNNING):
        try:
            status = xml.parse(document)
        except IsolationError as error:
            problems.append(f"/{_RUNNING}/{name}: {error}; planned as if this domain did not run")
            continue
        domain = status.find("domain")
        if status.tag != "domstatus" or domain is None:
            continue
        if groups is None:
            groups = system.directories(_RESCTRL)
        threads = dict(_threads(system, status))
        own = f"qemu-{domain.get('id')}-"  # virDomainGenerateMachineName(), src/conf/domain_conf.c
        schemata = [_schemata(system, group) for group in groups if group.startswith(own)]
        keeps, problem = _keeps_siblings(domain, system)
        problems += [f"/{_RUNNING}/{name}: {problem}"] if problem else []
        try:
            held = domains.running(domain, host, threads, schemata, keeps_siblings=keeps)
        except (KvmhooksError, ValueError) as error:
            problems.append(
                f"/{_RUNNING}/{name}: {error}; planned as if this domain had its CPUs alone"
            )
            held = domains.pinned(domain, host, threads, keeps_siblings=keeps)
        found.append(held)
    return found, problems


def defined_domains(
    system: System, host: Host, held: Sequence[Holding] = ()
) -> tuple[list[Holding], list[str]]:
    """Return what the domains that are defined would hold beside what is ``held``.

    The second is what is wrong with others.
    """
    found: list[Holding] = []
    problems: list[str] = []
    try:
        documents = [*_documents(system, _DEFINED)]
    except HostError as error:
        return [], [f"{error}; planned as if no domain was defined"]
    for name, document in documents:
        try:
            domain = xml.parse(document)
            if domain.tag != "domain":
                continue
            own = domains.identity_of(domain)
            others = [each for each in (*held, *found) if not own or each.uuid != own]
            keeps, problem = _keeps_siblings(domain, system)
            problems += [f"/{_DEFINED}/{name}: {problem}"] if problem else []
            found.append(domains.defined(domain, host, others, keeps_siblings=keeps))
        except (KvmhooksError, ValueError) as error:
            problems.append(f"/{_DEFINED}/{name}: {error}; planned as if it was not defined")
    return found, problems


def _keeps_siblings(domain: Element, system: System) -> tuple[bool, str]:
    """Return whether nobody may use the siblings of a domain's CPUs, and what keeps that unknown.

    Its metadata tells, or the administrator's files: with ``smt = "isolate"`` and no CPUs of its
    own it has no claim that would, unless the hook is installed.
    """
    try:
        return settings_of(domain, system).get("isolation.siblings") == "idle", ""
    except (KvmhooksError, OSError) as error:
        return False, f"{words_of(error)}; planned as if it left the siblings of its CPUs to others"


def autostarted(system: System) -> set[str]:
    """Return the names of the domains that start with the host, as far as we may know them."""
    try:
        names = system.names(_AUTOSTART)
    except OSError:  # they only break ties
        return set()
    return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}


def _documents(system: System, directory: str) -> Iterator[tuple[str, bytes]]:
    """Yield the documents of a directory; one that goes meanwhile is none. Raises ``HostError``."""
    try:
        names = [name for name in system.names(directory) if name.endswith(_SUFFIX)]
    except OSError as error:
        raise HostError(f"/{directory}: cannot be read: {error.strerror}") from error
    for name in names:
        try:
            yield name, system.read(f"{directory}/{name}").encode("utf-8", "surrogateescape")
        except FileNotFoundError:
            continue
        except OSError as error:
            message = f"/{directory}/{name}: cannot be read: {error.strerror}"
            raise HostError(message) from error


def _threads(system: System, status: Element) -> Iterator[tuple[int, CpuSet]]:
    """Yield the number of each vCPU that has a thread, and where that may run now."""
    for vcpu in status.findall("vcpus/vcpu"):
        number, cpus = vcpu.get("id"), _affinity(system, vcpu.get("pid"))
        if cpus and number.isascii() and number.isdecimal() and len(number) < 6:
            yield int(number), cpus


def _affinity(system: System, thread: str) -> CpuSet:
    """Return where a thread may run; nowhere when it has ended meanwhile."""
    if not (thread.isascii() and thread.isdecimal() and len(thread) < 10):
        return CpuSet()
    try:
        return system.affinity(int(thread))
    except (FileNotFoundError, ProcessLookupError):
        return CpuSet()


def _schemata(system: System, group: str) -> str:
    """Return the shares of a group of resctrl; none of one that has gone."""
    try:
        return system.read(f"{_RESCTRL}/{group}/schemata")
    except OSError:
        return ""
