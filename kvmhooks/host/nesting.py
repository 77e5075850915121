"""The nesting of a host: packages, nodes, caches and cores as one tree of sets of CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmhooks.host.model import Host

_RANKS: Final = ("machine", "package", "node", "die", "l3", "l2", "core")
"""Of places with the same CPUs the earlier holds the later."""


@frozen
class CpuPlace:
    """Something that CPUs are in."""

    kind: str
    label: str
    cpus: CpuSet
    inside: list[CpuPlace] = field(factory=list, eq=False)
    inside_of: dict[int, CpuPlace] = field(factory=dict, eq=False, repr=False)
    """The place that each CPU is in, so that thousands of cores are not compared in pairs."""


def nest(host: Host, kinds: Iterable[str] = _RANKS) -> CpuPlace:
    """Give the machine with its places inside each other.

    A place that is only partly inside another cannot be drawn as a box, and is left out.
    """
    wanted = set(kinds)
    top = CpuPlace("machine", "machine", host.online)
    places = [place for place in _places(host) if place.kind in wanted and place.cpus]
    places.sort(key=lambda place: (-len(place.cpus), _RANKS.index(place.kind), place.cpus.first()))
    for place in places:
        _insert(top, place)
    _sort(top)
    return top


def _insert(holder: CpuPlace, place: CpuPlace) -> None:
    while True:
        inner = holder.inside_of.get(place.cpus.first())
        if inner is None or not place.cpus <= inner.cpus:
            break
        holder = inner
    if not any(cpu in holder.inside_of for cpu in place.cpus):
        holder.inside.append(place)
        holder.inside_of.update(dict.fromkeys(place.cpus, place))


def _sort(place: CpuPlace) -> None:
    place.inside.sort(key=lambda each: each.cpus.first())
    for each in place.inside:
        _sort(each)


def _places(host: Host) -> list[CpuPlace]:
    cpus = [cpu for cpu in host.cpus or () if cpu.online]
    packages: dict[int, list[int]] = {}
    dies: dict[tuple[int, int], list[int]] = {}
    for cpu in cpus:
        if cpu.package is not None:
            packages.setdefault(cpu.package, []).append(cpu.id)
            if cpu.die is not None:
                dies.setdefault((cpu.package, cpu.die), []).append(cpu.id)
    several = len(dies) > len(packages)
    cores = {cpu.siblings or CpuSet((cpu.id,)): cpu.core for cpu in cpus}
    return [
        *(
            CpuPlace("package", f"package {number}", CpuSet(ids))
            for number, ids in packages.items()
        ),
        *(
            CpuPlace("node", f"node {node.id}", (node.cpus or CpuSet()) & host.online)
            for node in host.nodes or ()
        ),
        *(CpuPlace("die", f"die {die}", CpuSet(ids)) for (_, die), ids in dies.items() if several),
        *(
            CpuPlace(f"l{cache.level}", f"L{cache.level} {cache_size(cache.size_kib)}", cache.cpus)
            for cache in host.caches or ()
            if cache.level in {2, 3} and cache.type != "Instruction"
        ),
        *(
            CpuPlace("core", "core" if number is None else f"core {number}", siblings)
            for siblings, number in cores.items()
        ),
    ]


def cache_size(kib: int | None) -> str:
    """Write the size of a cache, which may be half of a MiB."""
    if kib is None:
        return ""
    return f"{kib / 1024:g} MiB" if kib >= 1024 else f"{kib} KiB"
