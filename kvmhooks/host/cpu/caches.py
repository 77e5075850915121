"""The caches of a host and the CPUs that share them.

The files are those of ``/sys/devices/system/cpu/cpu*/cache/index*`` in the kernel's
Documentation/ABI/testing/sysfs-devices-system-cpu. Each CPU tells of each cache that it uses; here
these leaves are put together, and what contradicts itself is left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from kvmhooks.host.model import Cache
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.flaws import Flaws

_INDEX: Final = re.compile(r"index\d{1,2}", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,9})([KM]?)", re.ASCII)
_KIB: Final = {"K": 1, "M": 1024}
_TYPES: Final = frozenset({"Data", "Instruction", "Unified"})


class Leaf(NamedTuple):
    """One cache as one of its CPUs tells of it."""

    path: str
    level: int
    type: str
    id: int | None
    size_kib: int | None
    cpus: CpuSet | None


def read_leaves(cpu: Directory) -> tuple[Leaf, ...]:
    """Read the caches that one CPU tells of."""
    directory = cpu.child("cache")
    if directory is None:
        return ()
    with directory:
        leaves = [_read_leaf(index) for index in directory.folders(_INDEX)]
    return tuple(leaf for leaf in leaves if leaf is not None)


def join(leaves: Mapping[int, tuple[Leaf, ...]], online: CpuSet, flaws: Flaws) -> tuple[Cache, ...]:
    """Make one cache of what its CPUs tell of it; ``leaves`` are given by CPU.

    Where CPUs do not agree on who shares a cache, most of its CPUs have the say: one that lies does
    not cost all others theirs. Without such a majority they are left without it. Both are said.
    """
    kinds: dict[tuple[int, str], list[tuple[int, Leaf]]] = {}
    for cpu, told in leaves.items():
        for leaf in told:
            kinds.setdefault((leaf.level, leaf.type), []).append((cpu, leaf))
    caches: list[Cache] = []
    for (level, kind), told_of in sorted(kinds.items()):
        groups = _agreed(told_of, online, flaws)
        numbers = _kernel_numbers(groups)
        caches += [
            Cache(
                level=level,
                type=kind,
                id=cpus.first() if numbers is None else numbers[cpus],
                size_kib=next((leaf.size_kib for leaf in group if leaf.size_kib), None),
                cpus=cpus,
                numbered_by_cpu=numbers is None,
            )
            for cpus, group in groups.items()
        ]
    return tuple(sorted(caches, key=lambda cache: (cache.level, cache.type, cache.cpus.first())))


def _read_leaf(index: Directory) -> Leaf | None:
    level = index.integer("level")
    kind = index.text("type")
    if level is None or level < 1 or kind not in _TYPES:
        index.warn("type", f"found level {level}, type {kind!r}: no cache that is known")
        return None
    cpus = index.sharing("shared_cpu_map", "shared_cpu_list")
    if not cpus:
        index.warn("shared_cpu_map", "does not say who shares this cache")
    return Leaf(
        path=index.path,
        level=level,
        type=kind,
        id=index.integer("id"),
        size_kib=_read_size(index),
        cpus=cpus or None,
    )


def _read_size(directory: Directory) -> int | None:
    text = directory.text("size")
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        directory.warn("size", f"found {text[:40]!r}, expected a size such as '32K'")
        return None
    size = int(found[1])
    # A bare number is in bytes; the kernel writes "0K" where it does not know.
    return (size * _KIB[found[2]] if found[2] else size // 1024) or None


def _agreed(
    told_of: Iterable[tuple[int, Leaf]], online: CpuSet, flaws: Flaws
) -> dict[CpuSet, list[Leaf]]:
    """Group the leaves of one level and type by the CPUs that share them, without conflicts."""
    groups: dict[CpuSet, list[Leaf]] = {}
    for cpu, leaf in told_of:
        if leaf.cpus is None:
            continue
        cpus = leaf.cpus & online
        if cpu not in leaf.cpus:
            flaws.add(
                f"{leaf.path}/shared_cpu_map", f"{leaf.cpus.brief()} does not hold the CPU itself"
            )
        elif cpu in online:
            groups.setdefault(cpus, []).append(leaf)
    # There is a leaf for each CPU that tells of a cache.
    contested = _contested(groups)
    wrong = [
        cpus
        for cpus, group in groups.items()
        if not cpus.isdisjoint(contested) and 2 * len(group) <= len(cpus)
    ]
    contested = _contested(cpus for cpus in groups if cpus not in wrong)
    wrong += [cpus for cpus in groups if cpus not in wrong and not cpus.isdisjoint(contested)]
    for cpus in wrong:
        what = f"{cpus.brief()} contradicts what other CPUs say"
        for leaf in groups.pop(cpus):
            flaws.add(f"{leaf.path}/shared_cpu_map", what)
    return groups


def _contested(groups: Iterable[CpuSet]) -> CpuSet:
    """Return the CPUs that are in more than one group."""
    seen = contested = 0
    for cpus in groups:
        contested |= seen & cpus.mask
        seen |= cpus.mask
    return CpuSet.from_mask(contested)


def _kernel_numbers(groups: Mapping[CpuSet, Iterable[Leaf]]) -> dict[CpuSet, int] | None:
    """Return the kernel's id of each cache; None when it does not give each one of its own."""
    numbers: dict[CpuSet, int] = {}
    for cpus, leaves in groups.items():
        told = {leaf.id for leaf in leaves}
        number = told.pop()
        if told or number is None or number < 0:
            return None
        numbers[cpus] = number
    return numbers if len(set(numbers.values())) == len(numbers) else None
