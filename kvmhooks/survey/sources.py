"""The sources of an inventory: each is this machine, or what was given in its place."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.system.system import System
from kvmhooks.machine.target import Version

if TYPE_CHECKING:
    from kvmhooks.isolate.registry.registry import Registry

LIVE: Final = "/"


@frozen(kw_only=True, slots=False)
class Sources:
    """Everything that an inventory is taken from; by default this machine, libvirt included."""

    host: str = LIVE
    """The root of the host, or the tar file of one."""
    claims: tuple[Holding, ...] | None = None
    """The resources that other VMs hold, instead of those that run or have a claim."""
    qemu: Version | None = None
    """The version of QEMU, instead of the one that is installed."""
    libvirt: Version | None = None
    """The version of libvirt, instead of the one that is installed."""
    has_libvirt: bool = True
    """It is libvirt that runs the VM."""
    capabilities: frozenset[str] | None = None
    """The words of libvirt's domain capabilities (``libvirt.capabilities``)."""
    uri: str | None = None
    """The libvirtd that is to run the VM: it is asked for them."""
    run_dir: Path | None = None
    """The base of kvm-launch's run directories, instead of this user's own."""
    assumes_kvm: bool = False
    """KVM counts as working on a captured host."""
    counts_defined: bool = False
    """Domains that are only defined hold what they would have."""
    _system: System | None = field(default=None, alias="system")
    """The host whose claims count, where it is another one than the host."""

    @property
    def is_live(self) -> bool:
        """The host is this machine."""
        return self.host == LIVE

    @cached_property
    def system(self) -> System | None:
        """The files below the root; None for a tar file, which has none of claims."""
        if self._system is not None:
            return self._system
        return System(self.host) if Path(self.host).is_dir() else None

    @property
    def is_readable(self) -> bool:
        """All of it may be read: by root, or it is a tree of files."""
        return os.geteuid() == 0 or self.system is None or not self.system.is_real

    def registry(self, system: System) -> Registry:
        """Return the registry of the claims that are on record there."""
        from kvmhooks.isolate.record.store import Store  # noqa: PLC0415 -- not of a tar file
        from kvmhooks.isolate.registry.registry import Registry  # noqa: PLC0415 -- as above

        return Registry(system, Store(system.root))
