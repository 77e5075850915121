"""The CPUs of a host: which there are, and the cores, dies and packages that they form.

The files are those of the kernel's Documentation/ABI/stable/sysfs-devices-system-cpu and
Documentation/admin-guide/cputopology.rst; which CPUs are online is in
Documentation/core-api/cpu_hotplug.rst.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from kvmhooks.host.cpu.caches import read_leaves
from kvmhooks.host.files.lists import CPUS
from kvmhooks.values import MAX_CPU, CpuSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.host.cpu.caches import Leaf
    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

_CPU_NAME: Final = re.compile(r"cpu(?:0|[1-9]\d{0,4})", re.ASCII)

_UNKNOWN: Final = frozenset({-1, 65_535, 4_294_967_295})
"""Ids that mean «unknown»: the default of include/linux/topology.h, and x86's ``BAD_APICID`` as 16
and as 32 bits (arch/x86/include/asm/apicdef.h)."""

_IDS: Final = {
    "package": "physical_package_id",
    "die": "die_id",
    "cluster": "cluster_id",
    "core": "core_id",
}
_EVERYWHERE: Final = frozenset({"package", "core"})
_NOT_EVERYWHERE: Final = frozenset({"cluster"})
"""Levels that many machines do not have; there «unknown» is no flaw."""

_SIBLINGS: Final = (("core_cpus", "core_cpus_list"), ("thread_siblings", "thread_siblings_list"))
"""The second pair has the names before Linux 5.3, which still stand beside the first."""


class CpuFiles(NamedTuple):
    """The files of one CPU, before they are compared with what the others say."""

    id: int
    ids: Mapping[str, int | None]
    siblings: CpuSet | None
    leaves: tuple[Leaf, ...]
    max_khz: int | None
    """This and the next are only read where there are no policies that say so."""
    base_khz: int | None
    capacity: int | None
    highest_perf: int | None
    own_online: bool | None
    """Its own ``online`` file, or that it has topology; only read without a list."""


def read_topologies(tree: Tree, online: CpuSet | None, *, frequencies: bool) -> list[CpuFiles]:
    """Read each CPU's own directory, with its own frequency if ``frequencies`` are asked for."""
    directory = tree.directory(CPUS)
    if directory is None:
        return []
    with directory:
        found = (int(name.removeprefix("cpu")) for name in directory.names(_CPU_NAME))
        numbers = sorted(number for number in found if number <= MAX_CPU)
        return [
            topology
            for number in numbers
            if (topology := _read_cpu(directory, number, online, frequencies=frequencies))
            is not None
        ]


def _read_cpu(
    cpus: Directory, number: int, online: CpuSet | None, *, frequencies: bool
) -> CpuFiles | None:
    directory = cpus.child(f"cpu{number}")
    if directory is None:
        return None
    with directory:
        topology = directory.child("topology")
        if topology is None:
            ids, siblings = dict.fromkeys(_IDS), None
            if online is not None and number in online:
                directory.warn_missing("topology")
        else:
            with topology:
                ids = {name: _read_id(topology, name) for name in _IDS}
                siblings = _read_siblings(topology)
        own_online = None
        if online is None:
            own_online = _own_online(directory, has_topology=topology is not None)
        max_khz, base_khz = _read_frequencies(directory) if frequencies else (None, None)
        return CpuFiles(
            id=number,
            ids=ids,
            siblings=siblings,
            leaves=read_leaves(directory),
            max_khz=max_khz,
            base_khz=base_khz,
            capacity=directory.integer("cpu_capacity"),
            highest_perf=_read_preference(directory),
            own_online=own_online,
        )


def _read_id(topology: Directory, name: str) -> int | None:
    file = _IDS[name]
    number = topology.integer(file)
    if number is None and name in _EVERYWHERE:
        topology.warn_missing(file)
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
    topology.warn_missing("core_cpus")
    return None


def _read_frequencies(directory: Directory) -> tuple[int | None, int | None]:
    """Read the maximum and the base frequency (Documentation/admin-guide/pm/cpufreq.rst)."""
    frequency = directory.child("cpufreq")
    if frequency is None:
        return None, None
    with frequency:
        return frequency.integer("cpuinfo_max_freq"), frequency.integer("base_frequency")


def _read_preference(directory: Directory) -> int | None:
    """Read the highest performance (Documentation/admin-guide/acpi/cppc_sysfs.rst)."""
    performance = directory.child("acpi_cppc")
    if performance is None:
        return None
    with performance:
        return performance.integer("highest_perf")


def _own_online(directory: Directory, *, has_topology: bool) -> bool | None:
    """Tell whether a CPU is online where no list does.

    A CPU that cannot be taken offline has no ``online`` file.
    """
    online = directory.integer("online")
    if online is None:
        return True if has_topology else None
    return online == 1
