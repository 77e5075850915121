"""CPU sets, sizes and PCI addresses: parsed once, written one way.

Everything here is immutable, hashable and orderable where an order means something. The libvirt
hook uses these too, and libvirt waits for it: nothing is imported that ``os`` has not loaded, since
``re`` and ``typing`` would each take as long as the interpreter itself.
"""

from __future__ import annotations

# ``collections.abc`` is this module, but loads ``collections`` with it.
from _collections_abc import Iterable, Iterator
from _collections_abc import Set as AbstractSet

from kvmhooks.cpu_lists import DIGITS, HEX, MAX_CPU, bits_of_list, bits_of_mask, is_made_of
from kvmhooks.errors import SHOWN, ValueFormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Self

__all__ = ["MAX_CPU", "ByteSize", "CpuSet", "PciAddress", "union"]


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
        if isinstance(cpus, range) and cpus.step == 1 and 0 <= cpus.start <= cpus.stop <= MAX_CPU:
            self._mask = (1 << cpus.stop) - (1 << cpus.start)
            return
        mask = 0
        for cpu in cpus:
            if not 0 <= cpu <= MAX_CPU:
                raise ValueFormatError(cpu, f"a CPU number from 0 to {MAX_CPU}")
            mask |= 1 << cpu
        self._mask = mask

    @classmethod
    def from_mask(cls, mask: int) -> Self:
        """Return the set whose members are the bits of ``mask``."""
        if mask < 0 or mask.bit_length() > MAX_CPU + 1:
            raise ValueFormatError(f"{mask:#x}"[:40], f"a mask of at most {MAX_CPU + 1} bits")
        made = cls.__new__(cls)
        made._mask = mask  # noqa: SLF001 -- the class's own slot, on an instance just made
        return made

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a list: the kernel's (``0-3,8``, ``0-31:2/4``) or libvirt's (``0-7,^2``).

        Raises ``ValueFormatError``.
        """
        return cls.from_mask(bits_of_list(text))

    @classmethod
    def parse_words(cls, text: str) -> Self:
        """Read the same with blanks for commas, as systemd and cpufreq write it.

        systemd.exec(5) (``CPUAffinity=``), Documentation/admin-guide/pm/cpufreq.rst
        (``affected_cpus``). Raises ``ValueFormatError``.
        """
        return cls.parse(",".join(text.replace(",", " ").split()))

    @classmethod
    def parse_mask(cls, text: str) -> Self:
        """Read a hex mask as the kernel writes it: ``ff`` or ``00000001,00000003``.

        Raises ``ValueFormatError``.
        """
        return cls.from_mask(bits_of_mask(text))

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
        bits = f"{self._mask:b}"[::-1]  # to shift the mask at each run would be quadratic
        first = bits.find("1")
        while first >= 0:
            after = bits.find("0", first)
            end = len(bits) if after < 0 else after
            yield first, end - 1
            first = bits.find("1", end)

    def first(self) -> int:
        """Return the lowest member. Raises ``ValueError`` for the empty set."""
        if not self._mask:
            raise ValueError("the empty CPU set has no first member")
        return (self._mask & -self._mask).bit_length() - 1

    def __str__(self) -> str:
        return ",".join(
            f"{first}-{last}" if last > first else str(first) for first, last in self.ranges()
        )

    def brief(self) -> str:
        """Return the set for a message: as ``str``, or its first 80 characters and an ellipsis.

        A set that came from outside can have as many runs as there are CPUs: 190 KB of them.
        """
        text = ""
        for first, last in self.ranges():
            text += f",{first}-{last}" if last > first else f",{first}"
            if len(text) > SHOWN + 1:
                return text[1 : text.rindex(",", 0, SHOWN + 2)] + ",…"
        return text[1:]

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
        mask = other._mask if isinstance(other, CpuSet) else CpuSet(other).mask  # noqa: SLF001 -- own
        return not self._mask & mask


def union(sets: Iterable[CpuSet]) -> CpuSet:
    """Return all members of all ``sets``."""
    mask = 0
    for cpus in sets:
        mask |= cpus.mask
    return CpuSet.from_mask(mask)


def _mask_of(cpus: AbstractSet[int]) -> int:
    return cpus.mask if isinstance(cpus, CpuSet) else CpuSet(cpus).mask


_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
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
        number, unit = _number_and_unit(text)
        if number and unit in _UNITS:
            return cls(int(number) * _UNITS[unit])
        raise ValueFormatError(text, _size_hint(number, unit.lower()))

    @classmethod
    def kib(cls, count: int) -> Self:
        """Return the size of ``count`` KiB."""
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


def _number_and_unit(text: str) -> tuple[str, str]:
    """Return the first digits of a text, at most 15, and what follows."""
    stripped = text.strip()
    count = len(stripped) - len(stripped.lstrip(DIGITS))
    number = stripped[: min(count, 15)]
    return number, stripped[len(number) :].strip()


def _size_hint(number: str, rest: str) -> str:
    """Name the spellings that a refused size could have meant."""
    if not number:
        return 'a size such as "512MiB" or "4GiB"'
    if not rest:
        return f'"{number}MiB" or "{number}GiB"; a bare number has no unit'
    unit = _DECIMAL.get(rest[0])
    if unit is not None:
        return f'"{number}{unit}"'
    return 'a unit of "KiB", "MiB", "GiB" or "TiB"'


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
        before, _, function = text.strip().rpartition(".")
        words = before.split(":")
        domain, bus, slot = words if len(words) == 3 else ("0000", *words, "", "")[:3]
        is_well_formed = (
            len(words) in {2, 3}
            and all(is_made_of(HEX, word, at_most=8) for word in (domain, bus, slot))
            and (len(domain) >= 4 and len(bus) == len(slot) == 2)
            and is_made_of("01234567", function, at_most=1)
        )
        if not is_well_formed or int(slot, 16) > 31:
            raise ValueFormatError(text, 'a PCI address such as "0000:3b:00.1"')
        return cls(int(domain, 16), int(bus, 16), int(slot, 16), int(function))

    def further(self, places: int) -> PciAddress:
        """Return the function so many places on: functions of a slot, slots of a bus, then buses.

        Raises ``ValueFormatError`` beyond the last bus.
        """
        place = (self.bus << 8) + (self.slot << 3) + self.function + places
        return PciAddress(self.domain, place >> 8, place >> 3 & 0x1F, place & 7)

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

    def __le__(self, other: PciAddress) -> bool:
        return self._key() <= other._key()

    def __gt__(self, other: PciAddress) -> bool:
        return self._key() > other._key()

    def __ge__(self, other: PciAddress) -> bool:
        return self._key() >= other._key()

    def _key(self) -> tuple[int, int, int, int]:
        return self.domain, self.bus, self.slot, self.function
