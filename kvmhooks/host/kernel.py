"""The running kernel, its command line, and the CPUs that it keeps apart.

``/sys/devices/system/cpu/isolated`` and ``nohz_full`` are described in the kernel's
Documentation/ABI/testing/sysfs-devices-system-cpu, ``/proc`` in Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

from kvmhooks.host.cpus import CPUS
from kvmhooks.host.model import Kernel

if TYPE_CHECKING:
    from kvmhooks.host.tree import Tree
    from kvmhooks.values import CpuSet

_VERSION: Final = re.compile(r"Linux version (\S+)")


@frozen
class CpuLists:
    """The kernel's own lists of CPUs."""

    online: CpuSet | None
    isolated: CpuSet | None
    nohz_full: CpuSet | None


def read_cpu_lists(tree: Tree) -> CpuLists:
    """Read the lists; ``nohz_full`` is missing where the kernel cannot do it."""
    return CpuLists(
        online=tree.cpus(f"{CPUS}/online"),
        isolated=tree.cpus(f"{CPUS}/isolated"),
        nohz_full=tree.cpus(f"{CPUS}/nohz_full"),
    )


def read_kernel(tree: Tree, lists: CpuLists) -> Kernel | None:
    """Read the kernel's release and command line; None where the tree tells nothing of it."""
    release = tree.text("proc/sys/kernel/osrelease") or _release_of(tree.text("proc/version"))
    kernel = Kernel(
        release=release,
        cmdline=tree.text("proc/cmdline"),
        isolated=lists.isolated,
        nohz_full=lists.nohz_full,
    )
    return None if kernel == Kernel() else kernel


def _release_of(version: str | None) -> str | None:
    found = _VERSION.match(version or "")
    return found[1] if found is not None else None
