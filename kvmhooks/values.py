"""CPU sets, sizes and PCI addresses: parsed once, written one way.

Everything here is immutable, hashable and orderable where an order means something. Only the
standard library is imported: the libvirt hook uses these too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final, Self

from kvmhooks.errors import ValueFormatError

MAX_CPU: Final = 65_535
"""The highest CPU or node number that is parsed.

The kernel's own limit is 8,192 (``CONFIG_NR_CPUS`` of x86 with ``MAXSMP``, arch/x86/Kconfig); a
bound is needed at all because one hostile range (``0-9999999999``) would otherwise fill the memory.
"""

_LIST_ITEM: Final = re.compile(r"(\^?)(\d{1,6})(?:-(\d{1,6})(?::(\d{1,6})/(\d{1,6}))?)?", re.ASCII)
_HEX_GROUP: Final = re.compile(r"[0-9a-fA-F]{1,8}", re.ASCII)
_LIST_EXPECTED: Final = 'a CPU list such as "0-3,8"'
_MASK_EXPECTED: Final = 'a hex mask in groups of 8 digits such as "ff,00000003"'


class CpuSet(AbstractSet[int]):
    """A set of CPU (or NUMA node) numbers: an integer with a bit for each member.

    It is an immutable ``collections.abc.Set`` that prints as the kernel's list (``0-3,8``); the
    algebra costs the same few machine instructions for 4 CPUs and for 4,096. ``<`` and its kin are
    the subset relation. It equals other CPU sets only (``cpus == CpuSet({1, 2})``), so that its
    hash need not be that of a ``frozenset``, which visits every member.
    """

    __slots__ = ("_mask",)

    _mask: int

    def __init__(self, cpus: Iterable[int] = ()) -> None:
        """Collect numbers.

        Raises ``ValueFormatError`` for one that is negative or above ``MAX_CPU``.
        """
        if isinstance(cpus, CpuSet):
            self._mask = cpus.mask
            return
        mask = 0
        for cpu in cpus:
            if not 0 <= cpu <= MAX_CPU:
                raise ValueFormatError(cpu, f"a CPU number from 0 to {MAX_CPU}")
            mask |= 1 << cpu
        self._mask = mask

    @classmethod
    def from_mask(cls, mask: int) -> Self:
        """The set whose members are the bits of ``mask``."""
        if mask < 0 or mask.bit_length() > MAX_CPU + 1:
            raise ValueFormatError(f"{mask:#x}"[:40], f"a mask of at most {MAX_CPU + 1} bits")
        made = cls.__new__(cls)
        made._mask = mask  # noqa: SLF001 -- the class's own slot, on an instance just made
        return made

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a list: the kernel's (``0-3,8``, ``0-31:2/4``) or libvirt's (``0-7,^2``).

        The kernel's format is that of ``bitmap_parselist()`` (lib/bitmap-str.c): ranges may be
        followed by ``:used/group``. libvirt's is that of ``virBitmapParse()``
        (src/util/virbitmap.c): items are taken from left to right and ``^N`` takes one away. The
        empty text is the empty set. Raises ``ValueFormatError``.
        """
        mask = 0
        stripped = text.strip().rstrip("\0").strip()
        for item in stripped.split(",") if stripped else ():
            found = _LIST_ITEM.fullmatch(item.strip())
            if found is None:
                raise ValueFormatError(text, _LIST_EXPECTED)
            mask = _apply_item(mask, found, text)
        return cls.from_mask(mask)

    @classmethod
    def parse_mask(cls, text: str) -> Self:
        """Read a hex mask as the kernel writes it: ``ff`` or ``00000001,00000003``.

        Groups are 32 bits wide, the highest first (``bitmap_parse()`` in lib/bitmap-str.c); a
        leading ``0x`` as in libvirt and ``taskset`` is allowed when there is one group. Raises
        ``ValueFormatError``.
        """
        stripped = text.strip().rstrip("\0").strip()
        if stripped[:2] in {"0x", "0X"} and re.fullmatch(r"[0-9a-fA-F]+", stripped[2:]):
            return cls.from_mask(int(stripped, 0))
        groups = stripped.split(",")
        if not all(_HEX_GROUP.fullmatch(group) for group in groups):
            raise ValueFormatError(text, _MASK_EXPECTED)
        mask = 0
        for group in groups:
            mask = mask << 32 | int(group, 16)
        return cls.from_mask(mask)

    @property
    def mask(self) -> int:
        """The set as an integer, bit N for member N."""
        return self._mask

    def format_mask(self, width: int = 0) -> str:
        """Write the kernel's hex mask: groups of 32 bits, the highest first.

        ``width`` is the least number of bits to write (the kernel pads to ``nr_cpu_ids``).
        """
        bits = max(self._mask.bit_length(), width, 1)
        groups = (bits + 31) // 32
        head = (bits - 32 * (groups - 1) + 3) // 4
        parts = [f"{self._mask >> 32 * at & 0xFFFFFFFF:08x}" for at in reversed(range(groups))]
        parts[0] = parts[0][8 - head :]
        return ",".join(parts)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the maximal runs as (first, last), lowest first."""
        mask, base = self._mask, 0
        while mask:
            skip = (mask & -mask).bit_length() - 1
            mask >>= skip
            base += skip
            run = (~mask & (mask + 1)).bit_length() - 1
            yield base, base + run - 1
            mask >>= run
            base += run

    def first(self) -> int:
        """Return the lowest member. Raises ``ValueError`` for the empty set."""
        if not self._mask:
            raise ValueError("the empty CPU set has no first member")
        return (self._mask & -self._mask).bit_length() - 1

    def __str__(self) -> str:
        return ",".join(
            f"{first}-{last}" if last > first else str(first) for first, last in self.ranges()
        )

    def __repr__(self) -> str:
        return f"CpuSet.parse({str(self)!r})"

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges():
            yield from range(first, last + 1)

    def __reversed__(self) -> Iterator[int]:
        return iter(tuple(self)[::-1])

    def __len__(self) -> int:
        return self._mask.bit_count()

    def __bool__(self) -> bool:
        return self._mask != 0

    def __contains__(self, cpu: object) -> bool:
        return isinstance(cpu, int) and cpu >= 0 and self._mask >> cpu & 1 == 1

    def __hash__(self) -> int:
        return hash(self._mask)

    def __eq__(self, other: object) -> bool:
        return self._mask == other._mask if isinstance(other, CpuSet) else NotImplemented

    def __le__(self, other: AbstractSet[int]) -> bool:
        return self._mask & ~_mask_of(other) == 0

    def __ge__(self, other: AbstractSet[int]) -> bool:
        return _mask_of(other) & ~self._mask == 0

    def __and__(self, other: AbstractSet[int]) -> CpuSet:
        return CpuSet.from_mask(self._mask & _mask_of(other))

    def __or__(self, other: AbstractSet[int]) -> CpuSet:  # type: ignore[override]
        return CpuSet.from_mask(self._mask | _mask_of(other))

    def __xor__(self, other: AbstractSet[int]) -> CpuSet:  # type: ignore[override]
        return CpuSet.from_mask(self._mask ^ _mask_of(other))

    def __sub__(self, other: AbstractSet[int]) -> CpuSet:
        return CpuSet.from_mask(self._mask & ~_mask_of(other))

    def isdisjoint(self, other: Iterable[int]) -> bool:
        """Tell whether no member is in ``other``."""
        return not self._mask & CpuSet(other).mask


def union(sets: Iterable[CpuSet]) -> CpuSet:
    """All members of all ``sets``."""
    return CpuSet.from_mask(functools.reduce(lambda mask, cpus: mask | cpus.mask, sets, 0))


def _mask_of(cpus: AbstractSet[int]) -> int:
    return cpus.mask if isinstance(cpus, CpuSet) else CpuSet(cpus).mask


def _apply_item(mask: int, found: re.Match[str], text: str) -> int:
    """Add one item of a list to ``mask``, or take it away."""
    without, first, last, used, group = found.groups()
    low = int(first)
    high = low if last is None else int(last)
    if high < low or high > MAX_CPU or (without and last is not None):
        raise ValueFormatError(text, _LIST_EXPECTED)
    if without:
        return mask & ~(1 << low)
    if used is None:
        return mask | (1 << high + 1) - (1 << low)
    if not 0 < int(used) <= int(group):
        raise ValueFormatError(text, 'a stride such as "0-31:2/4": 2 of every 4')
    for start in range(low, high + 1, int(group)):
        end = min(start + int(used), high + 1)
        mask |= (1 << end) - (1 << start)
    return mask


_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"(\d{1,15})\s*(KiB|MiB|GiB|TiB)", re.ASCII)
_DECIMAL: Final = {"k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB"}


class ByteSize(int):
    """A size in bytes, a multiple of 1 KiB, written with a binary unit (``512MiB``).

    An ``int``, so it adds and compares; arithmetic gives a plain ``int``.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``N KiB``, ``MiB``, ``GiB`` or ``TiB``.

        A bare number and decimal units are refused, since QEMU reads ``512`` as MiB, libvirt as
        KiB, and ``GB`` means two things. Raises ``ValueFormatError``.
        """
        found = _SIZE.fullmatch(text.strip())
        if found is not None:
            return cls(int(found[1]) * _UNITS[found[2]])
        raise ValueFormatError(text, _size_hint(text.strip()))

    @classmethod
    def kib(cls, count: int) -> Self:
        """The size of ``count`` KiB."""
        return cls(count << 10)

    @property
    def in_kib(self) -> int:
        """The size in KiB, rounded down."""
        return int(self) >> 10

    def __str__(self) -> str:
        for unit, factor in reversed(_UNITS.items()):
            if self and self % factor == 0:
                return f"{self // factor}{unit}"
        return f"{self // 1024}KiB"

    def __repr__(self) -> str:
        return f"ByteSize.parse({str(self)!r})"


def _size_hint(text: str) -> str:
    """Name the spellings that a refused size could have meant."""
    number = re.match(r"\d{1,15}", text, re.ASCII)
    if number is None:
        return 'a size such as "512MiB" or "4GiB"'
    rest = text[number.end() :].strip().lower()
    if not rest:
        return f'"{number[0]}MiB" or "{number[0]}GiB"; a bare number has no unit'
    unit = _DECIMAL.get(rest[0])
    if unit is not None:
        return f'"{number[0]}{unit}"'
    return 'a unit of "KiB", "MiB", "GiB" or "TiB"'


_PCI: Final = re.compile(
    r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])", re.ASCII
)


@functools.total_ordering
class PciAddress:
    """The address of a PCI function: ``0000:3b:00.1``.

    A domain of more than four digits occurs behind Intel VMD (``10000:e1:00.0``).
    """

    __slots__ = ("bus", "domain", "function", "slot")

    domain: int
    bus: int
    slot: int
    function: int

    def __init__(self, domain: int, bus: int, slot: int, function: int) -> None:
        """Take the four numbers; raises ``ValueFormatError`` for one that is out of range."""
        fits = 0 <= domain < 1 << 32 and 0 <= bus < 256 and 0 <= slot < 32 and 0 <= function < 8
        if not fits:
            raise ValueFormatError(
                (domain, bus, slot, function), "domain, bus < 256, slot < 32, function < 8"
            )
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "bus", bus)
        object.__setattr__(self, "slot", slot)
        object.__setattr__(self, "function", function)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``DDDD:BB:SS.F``, or ``BB:SS.F`` for domain 0. Raises ``ValueFormatError``."""
        found = _PCI.fullmatch(text.strip())
        if found is None or int(found[3], 16) > 31:
            raise ValueFormatError(text, 'a PCI address such as "0000:3b:00.1"')
        return cls(int(found[1] or "0", 16), int(found[2], 16), int(found[3], 16), int(found[4]))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a PCI address does not change: {name} = {value!r}")

    def __reduce__(self) -> tuple[type[Self], tuple[int, int, int, int]]:
        return type(self), self._key()

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function}"

    def __repr__(self) -> str:
        return f"PciAddress.parse({str(self)!r})"

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, PciAddress) else NotImplemented

    def __lt__(self, other: PciAddress) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, int, int, int]:
        return self.domain, self.bus, self.slot, self.function
