"""The ways of the caches that the rest of the host may use: resctrl's default group, narrowed.

libvirt gives a VM with ``<cachetune>`` a group of its own between `start` and `started`, out of
what no group uses, and takes the smallest free run of ways (``virResctrlAllocFindUnused()``,
src/util/virresctrl.c). The default group uses everything unless somebody narrows it, so that at
`start` it loses as many of its highest ways as the VM asks for. A group's ways must be adjacent,
and a write may name one cache alone (Documentation/arch/x86/resctrl.rst, «Schemata files»).
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.engine.knob import Knob
from kvmhooks.isolate.record.state import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System

_BASE: Final = "sys/fs/resctrl"
SCHEMATA: Final = f"{_BASE}/schemata"
_CPUS: Final = "sys/devices/system/cpu"
_LIBVIRTS: Final = "qemu-"
"""libvirt's groups begin with the machine's name (``virResctrlAllocDeterminePath()``)."""

_RESOURCES: Final = {"both": "", "code": "CODE", "data": "DATA"}


def knobs(system: System, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield a knob for each cache of which a VM wants ways, and for those on record."""
    if not system.has(SCHEMATA):
        return
    wanted: dict[tuple[str, int], list[int]] = {}
    for vm in view.held:
        for level, kind, cache, kib in vm.claim.caches:
            ways = wanted.setdefault((f"L{level}{_RESOURCES[kind]}", cache), [])
            if vm.state != RUNNING:  # from then on its group says which it has
                ways.append(_ways(system, view, level, kind, cache, kib))
    for key in records:
        if key.startswith("cache/"):
            _, resource, cache_id = key.split("/")
            wanted.setdefault((resource, int(cache_id)), [])
    is_wanted = any(vm.claim.caches for vm in view.held)
    groups = [name for name in system.directories(_BASE) if name.startswith(_LIBVIRTS)]
    for (resource, cache), pending in wanted.items():
        limit = f"{_BASE}/info/{resource}/min_cbm_bits"
        least = int(system.read(limit)) if system.has(limit) else 1
        used = 0
        for group in groups if is_wanted else ():
            used |= _masks(system.read(f"{_BASE}/{group}/schemata")).get((resource, cache), 0)
        yield _Ways(resource, cache, used, pending, least)


def remaining(original: int, used: int, pending: Iterable[int], least: int) -> int:
    """Return the lowest ways of the default group that leave what VMs use and want: pure.

    Never fewer than ``least``, which the kernel would refuse: libvirt then says that there is no
    room.
    """
    wants = sorted(pending, reverse=True)
    lowest = (original & -original).bit_length() - 1
    height = original.bit_length()
    if used & original:
        height = (used & original & -(used & original)).bit_length() - 1
    while height > lowest + least:
        below = (1 << height) - 1
        if _fit(original & ~used & ~below, wants):
            return original & below
        height -= 1
    return original & ((1 << (lowest + least)) - 1)


def _fit(free: int, wants: Iterable[int]) -> bool:
    """Return whether there is a run of free ways for each, the smallest that is large enough."""
    for want in wants:
        runs = sorted((length, start) for start, length in _runs(free) if length >= want)
        if not runs:
            return False
        free &= ~(((1 << want) - 1) << runs[0][1])
    return True


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, length) of each run of ones."""
    start = 0
    while mask >> start:
        start += (mask >> start & -(mask >> start)).bit_length() - 1
        rest = mask >> start
        length = (~rest & (rest + 1)).bit_length() - 1
        yield start, length
        start += length


def _ways(system: System, view: View, level: int, kind: str, cache: int, kib: int) -> int:
    """Return how many ways a size takes: each is the cache's size by the bits of ``cbm_mask``.

    None of a cache that this host does not have: libvirt refuses the VM, and names it.
    """
    full = f"{_BASE}/info/L{level}{_RESOURCES[kind]}/cbm_mask"
    for cpu in view.online if system.has(full) else ():
        for index in system.directories(f"{_CPUS}/cpu{cpu}/cache"):
            path = f"{_CPUS}/cpu{cpu}/cache/{index}"
            if system.has(f"{path}/id") and (
                (system.read(f"{path}/level"), system.read(f"{path}/id"))
                == (str(level), str(cache))
            ):
                size_kib = int(system.read(f"{path}/size").removesuffix("K"))
                return -(-kib * int(system.read(full), 16).bit_count() // size_kib)
    return 0


def _masks(text: str) -> dict[tuple[str, int], int]:
    """Return the mask of each cache, from ``L3:0=fffff;1=fffff`` and other lines."""
    found = {}
    for line in text.split("\n"):
        resource, _, masks = line.strip().partition(":")
        for word in masks.split(";") if resource.startswith("L") else ():
            cache, _, mask = word.partition("=")
            found[resource, int(cache)] = int(mask, 16)
    return found


def merged(schemata: str, written: str) -> str:
    """Return ``schemata`` after a write of ``L3:0=ff``: the other caches stay as they are."""
    resource, _, change = written.strip().partition(":")
    cache = change.partition("=")[0]
    lines = []
    for line in schemata.split("\n"):
        name, _, masks = line.strip().partition(":")
        words = [
            change if (name, word.partition("=")[0]) == (resource, cache) else word
            for word in masks.split(";")
        ]
        lines.append(f"{name}:{';'.join(words)}")
    return "\n".join(lines)


class _Ways(Knob):
    """The default group's ways of one cache."""

    __slots__ = ("cache", "least", "pending", "resource", "used")

    def __init__(
        self, resource: str, cache: int, used: int, pending: list[int], least: int
    ) -> None:
        super().__init__(f"cache/{resource}/{cache}")
        self.resource = resource
        self.cache = cache
        self.used = used
        self.pending = pending
        self.least = least

    @property
    def place(self) -> str:
        return f"cache {self.cache} of {self.resource} in /{SCHEMATA}"

    def read(self, system: System) -> str:
        masks = _masks(system.read(SCHEMATA))
        if (self.resource, self.cache) not in masks:
            raise ValueFormatError(sorted(masks), f"cache {self.cache} of {self.resource}")
        return f"{masks[self.resource, self.cache]:x}"

    def write(self, system: System, value: str) -> None:
        system.write(SCHEMATA, f"{self.resource}:{self.cache}={value}")

    def target(self, original: str, view: View) -> str:
        if not any(vm.claim.caches for vm in view.held):
            return original
        return f"{remaining(int(original, 16), self.used, self.pending, self.least):x}"

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        """Return the VMs with ways of this cache; with ways of any, where others' are in use."""
        every = [vm for vm in view.held if vm.claim.caches]
        own = [
            vm
            for vm in every
            for level, kind, cache, _ in vm.claim.caches
            if (f"L{level}{_RESOURCES[kind]}", cache) == (self.resource, self.cache)
        ]
        return [*dict.fromkeys(own)] or every
