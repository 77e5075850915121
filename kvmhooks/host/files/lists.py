"""The kernel's own lists of CPUs.

(Documentation/admin-guide/cputopology.rst, and for the two of isolation
Documentation/ABI/testing/sysfs-devices-system-cpu.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from kvmhooks.host.files.tree import Tree
    from kvmhooks.values import CpuSet

CPUS: Final = "sys/devices/system/cpu"


class CpuLists(NamedTuple):
    """CPUs by what the kernel says of them."""

    online: CpuSet | None = None
    possible: CpuSet | None = None
    isolated: CpuSet | None = None
    nohz_full: CpuSet | None = None


NO_LISTS: Final = CpuLists()


def read_cpu_lists(tree: Tree) -> CpuLists:
    """Read the lists; ``nohz_full`` is missing where the kernel cannot do it."""
    directory = tree.directory(CPUS)
    if directory is None:
        return NO_LISTS
    with directory:
        return CpuLists(
            online=directory.cpus("online"),
            possible=directory.cpus("possible"),
            isolated=directory.cpus("isolated"),
            nohz_full=directory.cpus("nohz_full"),
        )
