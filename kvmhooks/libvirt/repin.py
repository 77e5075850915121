"""A VM that libvirt runs, moved to other CPUs while it runs.

The pins are changed for this run and for the next: libvirt-domain.html, ``virDomainPinVcpuFlags``,
``virDomainPinEmulator`` and ``virDomainPinIOThread``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from kvmhooks.errors import LaunchError, QemuError
from kvmhooks.libvirt.connection import connected
from kvmhooks.values import CpuSet, union


class RunningDomain:
    """One running domain."""

    def __init__(self, library: Any, connection: Any, handle: Any) -> None:
        self._library = library
        self._connection = connection
        self._handle = handle
        self.uuid = str(handle.UUIDString())

    @classmethod
    @contextmanager
    def connected(cls, uri: str, name: str) -> Iterator[Self]:
        """Give a running domain of this name, with its connection. Raises ``LaunchError``."""
        with connected(uri) as connection:
            import libvirt  # noqa: PLC0415 -- an extra; ``connected`` says so when it is not there

            try:
                handle = connection.lookupByName(name)
                if not handle.isActive():
                    raise LaunchError(
                        f"{name}: found a VM that is shut off, expected one that runs"
                    )
            except libvirt.libvirtError as error:
                raise LaunchError(f"{name}: {error}") from error
            yield cls(libvirt, connection, handle)

    def document(self) -> bytes:
        """Return its XML as it runs, without secrets."""
        return str(self._handle.XMLDesc(0)).encode()

    @staticmethod
    def nodes(document: bytes) -> frozenset[int]:
        """Return the host nodes that its memory is bound to; empty where it is not."""
        texts = re.findall(rb"<mem(?:ory|node) [^>]*nodeset=['\"]([0-9,^-]+)['\"]", document)
        return frozenset(union(CpuSet.parse(text.decode()) for text in texts))

    def pin(
        self, vcpus: Mapping[int, CpuSet], emulator: CpuSet, iothreads: Mapping[int, CpuSet]
    ) -> None:
        """Pin its threads, now and for its next start. Raises ``QemuError``."""
        library, handle = self._library, self._handle
        flags = library.VIR_DOMAIN_AFFECT_LIVE
        if handle.isPersistent():
            flags |= library.VIR_DOMAIN_AFFECT_CONFIG
        width = int(self._connection.getCPUMap()[0])
        try:
            if emulator:
                handle.pinEmulator(_mask(emulator, width), flags)
            for number, cpus in sorted(iothreads.items()):
                handle.pinIOThread(number, _mask(cpus, width), flags)
            for number, cpus in sorted(vcpus.items()):
                handle.pinVcpuFlags(number, _mask(cpus, width), flags)
        except library.libvirtError as error:
            raise QemuError(f"domain {handle.name()} could not be pinned: {error}") from error


def _mask(cpus: CpuSet, width: int) -> tuple[bool, ...]:
    """Return the set as libvirt-python takes it: whether each CPU of the host is in it."""
    return tuple(cpu in cpus for cpu in range(width))
