"""The CPUs of a host: which there are, and the cores, dies and packages that they form.

The files are those of the kernel's Documentation/ABI/stable/sysfs-devices-system-cpu and
Documentation/admin-guide/cputopology.rst; which CPUs are online is in
Documentation/core-api/cpu_hotplug.rst.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

from kvmhooks.host.caches import read_leaves
from kvmhooks.values import MAX_CPU, CpuSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.host.caches import Leaf
    from kvmhooks.host.tree import Directory, Tree

CPUS: Final = "sys/devices/system/cpu"

_CPU_NAME: Final = re.compile(r"cpu(0|[1-9]\d{0,4})", re.ASCII)

_UNKNOWN: Final = frozenset({-1, 65_535, 4_294_967_295})
"""Ids that mean «unknown»: the default of include/linux/topology.h, and x86's ``BAD_APICID`` as 16
and as 32 bits (arch/x86/include/asm/apicdef.h)."""

_IDS: Final = {
    "package": "physical_package_id",
    "die": "die_id",
    "cluster": "cluster_id",
    "core": "core_id",
}
_NOT_EVERYWHERE: Final = frozenset({"die", "cluster"})
"""Levels that many machines and older kernels do not have; there «unknown» is no flaw."""

_SIBLINGS: Final = (("core_cpus", "core_cpus_list"), ("thread_siblings", "thread_siblings_list"))
"""The second pair has the names before Linux 5.3, which still stand beside the first."""


@frozen
class Topology:
    """What the files of one CPU say, before it is compared with what the others say."""

    id: int
    ids: Mapping[str, int | None]
    siblings: CpuSet | None
    leaves: tuple[Leaf, ...]
    max_khz: int | None
    own_online: bool | None
    """What its own ``online`` file says, or that it has topology; only read without a list."""


def read_topologies(tree: Tree, online: CpuSet | None) -> list[Topology]:
    """Read each CPU's own directory."""
    directory = tree.directory(CPUS)
    if directory is None:
        return []
    with directory:
        numbers = sorted(
            number
            for name in directory.names()
            if (found := _CPU_NAME.fullmatch(name)) and (number := int(found[1])) <= MAX_CPU
        )
        return [
            topology
            for number in numbers
            if (topology := _read_cpu(directory, number, online)) is not None
        ]


def _read_cpu(cpus: Directory, number: int, online: CpuSet | None) -> Topology | None:
    directory = cpus.child(f"cpu{number}")
    if directory is None:
        return None
    with directory:
        topology = directory.child("topology")
        if topology is None:
            ids, siblings = dict.fromkeys(_IDS), None
        else:
            with topology:
                ids = {name: _read_id(topology, name) for name in _IDS}
                siblings = _read_siblings(topology)
        own_online = None
        if online is None:
            own_online = _own_online(directory, has_topology=topology is not None)
        return Topology(
            id=number,
            ids=ids,
            siblings=siblings,
            leaves=read_leaves(directory),
            max_khz=_read_frequency(directory),
            own_online=own_online,
        )


def _read_id(topology: Directory, name: str) -> int | None:
    file = _IDS[name]
    number = topology.integer(file)
    if number is None or (number >= 0 and number not in _UNKNOWN):
        return number
    if number not in _UNKNOWN or name not in _NOT_EVERYWHERE:
        topology.warn(file, f"{number} is no id")
    return None


def _read_siblings(topology: Directory) -> CpuSet | None:
    for mask, listed in _SIBLINGS:
        siblings = topology.sharing(mask, listed)
        if siblings:
            return siblings
    return None


def _read_frequency(directory: Directory) -> int | None:
    """Read ``cpuinfo_max_freq`` (Documentation/admin-guide/pm/cpufreq.rst)."""
    frequency = directory.child("cpufreq")
    if frequency is None:
        return None
    with frequency:
        return frequency.integer("cpuinfo_max_freq")


def _own_online(directory: Directory, *, has_topology: bool) -> bool | None:
    """Tell whether a CPU is online where no list does.

    A CPU that cannot be taken offline has no ``online`` file.
    """
    said = directory.integer("online")
    if said is None:
        return True if has_topology else None
    return said == 1
