"""Texts that are refused as a CPU set, a size or a PCI address, and what is said about them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from kvmhooks.errors import ValueFormatError
from kvmhooks.values import MAX_CPU, ByteSize, CpuSet, PciAddress, union

LIST = 'a CPU list such as "0-3,8"'
MASK = 'a hex mask in groups of 8 digits such as "ff,00000003"'
STRIDE = 'a stride such as "0-31:2/4": 2 of every 4'
PCI = 'a PCI address such as "0000:3b:00.1"'


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", ()),
        (" \n", ()),
        ("0\n", (0,)),
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("8, 0-1", (0, 1, 8)),
        ("0-7:2/4", (0, 1, 4, 5)),
        ("0-7,^2-2", None),
        ("0-3,^2", (0, 1, 3)),
        ("^2,2", (2,)),
        ("65535", (65535,)),
    ],
)
def test_lists(text: str, cpus: tuple[int, ...] | None) -> None:
    """The kernel's lists, with strides, and libvirt's, with single exclusions."""
    if cpus is None:
        with pytest.raises(ValueFormatError):
            CpuSet.parse(text)
    else:
        assert CpuSet.parse(text) == CpuSet(cpus)


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (CpuSet.parse, "a", LIST),
        (CpuSet.parse, "3-1", LIST),
        (CpuSet.parse, "1,,2", LIST),
        (CpuSet.parse, "1,", LIST),
        (CpuSet.parse, "-1", LIST),
        (CpuSet.parse, "65536", LIST),
        (CpuSet.parse, "0-9999999999", LIST),
        (CpuSet.parse, "\u0663", LIST),
        (CpuSet.parse, "0-3:0/4", STRIDE),
        (CpuSet.parse, "0-3:5/4", STRIDE),
        (CpuSet.parse, "1:1/2", LIST),
        (CpuSet.parse_mask, "", MASK),
        (CpuSet.parse_mask, "0x", MASK),
        (CpuSet.parse_mask, "0x1,2", MASK),
        (CpuSet.parse_mask, "123456789", MASK),
        (CpuSet.parse_mask, "1,,2", MASK),
        (CpuSet.parse_mask, "g", MASK),
        (ByteSize.parse, "", 'a size such as "512MiB" or "4GiB"'),
        (ByteSize.parse, "lots", 'a size such as "512MiB" or "4GiB"'),
        (ByteSize.parse, "-1MiB", 'a size such as "512MiB" or "4GiB"'),
        (ByteSize.parse, "512", '"512MiB" or "512GiB"; a bare number has no unit'),
        (ByteSize.parse, "4GB", '"4GiB"'),
        (ByteSize.parse, "4 g", '"4GiB"'),
        (ByteSize.parse, "512mib", '"512MiB"'),
        (ByteSize.parse, "7 apples", 'a unit of "KiB", "MiB", "GiB" or "TiB"'),
        (ByteSize.parse, "1.5GiB", 'a unit of "KiB", "MiB", "GiB" or "TiB"'),
        (PciAddress.parse, "", PCI),
        (PciAddress.parse, "3b:00", PCI),
        (PciAddress.parse, "3b:20.0", PCI),
        (PciAddress.parse, "3b:00.8", PCI),
        (PciAddress.parse, "00:3b:00.1", PCI),
    ],
)
def test_a_text_that_is_none(parse: Callable[[str], object], text: str, expected: str) -> None:
    """The error says what was found and what was expected, and is a ValueError as well."""
    with pytest.raises(ValueError, match="found ") as raised:
        parse(text)
    assert str(raised.value) == f"found {text!r}, expected {expected}"


@pytest.mark.parametrize("wrong", [(-1,), (MAX_CPU + 1,)])
def test_numbers_that_are_no_cpus(wrong: tuple[int, ...]) -> None:
    """A CPU number is from 0 to 65,535, wherever it comes from."""
    with pytest.raises(ValueFormatError, match="a CPU number from 0 to 65535"):
        CpuSet(wrong)
    with pytest.raises(ValueFormatError, match="a CPU number from 0 to 65535"):
        CpuSet((1,)) | set(wrong)


@pytest.mark.parametrize("mask", [-1, 1 << MAX_CPU + 1], ids=["negative", "wide"])
def test_masks_that_are_none(mask: int) -> None:
    """A mask has no sign and 65,536 bits at most."""
    with pytest.raises(ValueFormatError, match="a mask of at most 65536 bits"):
        CpuSet.from_mask(mask)
    with pytest.raises(ValueFormatError):
        CpuSet.parse_mask(f"{mask:#x}")


def test_the_empty_set() -> None:
    """It prints as nothing, is false, has no first member, and its mask is one digit."""
    empty = CpuSet()
    assert (str(empty), bool(empty), len(empty), list(empty)) == ("", False, 0, [])
    assert (empty.format_mask(), empty.format_mask(64)) == ("0", "00000000,00000000")
    assert union(()) == empty
    with pytest.raises(ValueError, match="no first member"):
        empty.first()


def test_what_is_no_member() -> None:
    """Membership may be asked of anything."""
    cpus = CpuSet((0, 1))
    assert [other in cpus for other in (0, -1, 2, "0", None, 0.0)] == [True] + [False] * 5


def test_values_print_as_the_code_that_makes_them() -> None:
    """Each ``repr`` can be read by a person and evaluated."""
    values: list[Any] = [CpuSet((0, 1, 8)), ByteSize.kib(3 << 20), PciAddress(0, 0x3B, 0, 1)]
    assert [repr(value) for value in values] == [
        "CpuSet.parse('0-1,8')",
        "ByteSize.parse('3GiB')",
        "PciAddress.parse('0000:3b:00.1')",
    ]


def test_no_value_is_equal_to_one_of_another_kind() -> None:
    """A CPU set is no frozenset, a PCI address no text; neither is hashed like one."""
    assert CpuSet((1,)) != frozenset({1})
    assert PciAddress(0, 0, 0, 0) != "0000:00:00.0"


def test_a_pci_address_does_not_change() -> None:
    """Its numbers are there to be read."""
    address = PciAddress.parse("10000:e1:1f.7")
    assert (address.domain, address.bus, address.slot, address.function) == (0x10000, 0xE1, 31, 7)
    with pytest.raises(AttributeError, match="does not change: bus = 1"):
        address.bus = 1


@pytest.mark.parametrize(
    "numbers", [(-1, 0, 0, 0), (1 << 32, 0, 0, 0), (0, 256, 0, 0), (0, 0, 32, 0), (0, 0, 0, 8)]
)
def test_numbers_that_are_no_pci_address(numbers: tuple[int, int, int, int]) -> None:
    """Each number has its bound."""
    with pytest.raises(ValueFormatError, match="bus < 256, slot < 32, function < 8"):
        PciAddress(*numbers)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0KiB"),
        (1 << 10, "1KiB"),
        (1536 << 10, "1536KiB"),
        (1 << 40, "1TiB"),
        (3 << 29, "1536MiB"),
    ],
)
def test_sizes_print_without_a_fraction(size: int, text: str) -> None:
    """The largest unit that leaves a whole number; zero is in the smallest."""
    assert str(ByteSize(size)) == text


def test_4096_cpus_are_as_quick_as_4() -> None:
    """The algebra of sets of 4,096 CPUs takes less than ten times that of sets of 4."""
    small = (CpuSet(range(4)), CpuSet(range(2, 6)))
    large = (CpuSet(range(0, 4096, 2)), CpuSet(range(0, 4096, 3)))
    assert len(large[0] & large[1]) == 683
    assert str(CpuSet(range(4096))) == "0-4095"
    assert min(map(_seconds, [large] * 5)) < 10 * min(map(_seconds, [small] * 5))


def _seconds(sets: tuple[CpuSet, CpuSet]) -> float:
    first, other = sets
    start = time.perf_counter()
    for _ in range(1000):
        assert (first | other) >= (first & other)
        assert not (first - other) & (other - first)
        assert len(first ^ other)
    return time.perf_counter() - start


def test_strides_and_runs_of_all_cpus_cost_steps_not_squares() -> None:
    """Every second of 65,536 CPUs: read and written a hundred times, each as quick as a copy."""
    begun = time.process_time()
    for _ in range(100):
        odd = CpuSet.parse("0-65535:1/2")
    assert time.process_time() - begun < 1  # it took five seconds
    assert (len(odd), odd.first(), max(odd)) == (32_768, 0, 65_534)
    assert str(odd).count(",") == 32_767
    assert CpuSet.parse("3-20:2/5") == CpuSet((3, 4, 8, 9, 13, 14, 18, 19))
    assert CpuSet.parse("1-7:3/3") == CpuSet(range(1, 8))
    assert CpuSet.parse("5-5:1/9") == CpuSet((5,))
