"""Laws of CPU sets, sizes and PCI addresses."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvmhooks.values import MAX_CPU, ByteSize, CpuSet, PciAddress, union
from tests.laws.strategies import cpu_sets, members, pci_addresses, sizes

SMALL = st.integers(0, 200)


@pytest.mark.parametrize("operation", [operator.and_, operator.or_, operator.xor, operator.sub])
@given(members, members)
def test_set_algebra(operation: Callable[[Any, Any], Any], some: Any, other: Any) -> None:
    """Each operation gives what Python's own sets give, also with a plain set on either side."""
    expected = CpuSet(operation(some, other))
    assert operation(CpuSet(some), CpuSet(other)) == expected
    assert operation(CpuSet(some), other) == expected
    assert operation(some, CpuSet(other)) == expected


@pytest.mark.parametrize("relation", [operator.le, operator.lt, operator.ge, operator.gt])
@given(members, members)
def test_subset_relation(relation: Callable[[Any, Any], bool], some: Any, other: Any) -> None:
    """Subsets and supersets are those of Python's own sets."""
    assert relation(CpuSet(some), CpuSet(other)) == relation(some, other)
    assert relation(CpuSet(some), CpuSet(some | other)) == relation(some, some | other)


@given(cpu_sets, cpu_sets, cpu_sets)
def test_subset_relation_is_a_partial_order(first: CpuSet, other: CpuSet, third: CpuSet) -> None:
    """It is reflexive, antisymmetric and transitive."""
    assert first <= first  # noqa: PLR0124 -- the law
    assert not (first <= other <= first) or first == other
    assert (
        (first & other & third)
        <= (first & other)
        <= first
        <= (first | other)
        <= (first | other | third)
    )
    assert not (first <= other <= third) or first <= third


@given(members)
def test_a_set_is_what_it_was_made_of(cpus: frozenset[int]) -> None:
    """Members, length, truth, membership, order and both ends are those of the numbers given."""
    made = CpuSet(cpus)
    assert list(made) == sorted(cpus)
    assert list(reversed(made)) == sorted(cpus, reverse=True)
    assert len(made) == len(cpus)
    assert bool(made) == bool(cpus)
    assert {cpu for cpu in range(301) if cpu in made} == {cpu for cpu in cpus if cpu <= 300}
    assert not cpus or made.first() == min(cpus)


@given(members, members)
def test_equality_and_hash_are_consistent(numbers: frozenset[int], other: frozenset[int]) -> None:
    """Sets are equal exactly when their members are, and equal ones have the same hash."""
    assert (CpuSet(numbers) == CpuSet(other)) == (numbers == other)
    assert hash(CpuSet(sorted(numbers))) == hash(CpuSet(sorted(numbers, reverse=True)))
    assert CpuSet(numbers) != numbers


@given(cpu_sets)
@example(CpuSet())
@example(CpuSet((MAX_CPU,)))
def test_parse_inverts_format(cpus: CpuSet) -> None:
    """A list, a mask of any width, a ``repr`` and a pickle are read back as the same set."""
    assert CpuSet.parse(str(cpus)) == cpus
    assert CpuSet.parse(f" {cpus}\n\0") == cpus
    assert CpuSet.parse_mask(cpus.format_mask()) == cpus
    assert CpuSet.parse_mask(cpus.format_mask(4096)) == cpus
    assert CpuSet.from_mask(cpus.mask) == cpus
    assert CpuSet.parse_mask(f"{cpus.mask:#x}") == cpus
    assert pickle.loads(pickle.dumps(cpus)) == copy.copy(cpus) == cpus  # noqa: S301 -- our own


@given(cpu_sets, SMALL)
def test_masks_are_written_as_the_kernel_writes_them(cpus: CpuSet, width: int) -> None:
    """Groups of eight digits but the first, of as many bits as asked for or needed."""
    first, *rest = cpus.format_mask(width).split(",")
    assert all(len(group) == 8 for group in rest)
    assert 1 <= len(first) <= 8
    digits = len(first) + 8 * len(rest)
    assert digits == -(-max(width, cpus.mask.bit_length(), 1) // 4)


@given(cpu_sets)
def test_ranges_are_maximal_and_ascend(cpus: CpuSet) -> None:
    """Ranges hold each member once, lowest first, and between two there is a gap."""
    ranges = list(cpus.ranges())
    assert [cpu for first, last in ranges for cpu in range(first, last + 1)] == list(cpus)
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(ranges))


@given(SMALL, SMALL, st.integers(1, 40), st.integers(1, 40))
def test_strides_take_the_first_of_each_group(
    first: int, length: int, this: int, that: int
) -> None:
    """``A-B:used/group`` is the first ``used`` of every ``group`` numbers from A to B."""
    used, group = sorted((this, that))
    expected = {cpu for cpu in range(first, first + length + 1) if (cpu - first) % group < used}
    assert CpuSet.parse(f"{first}-{first + length}:{used}/{group}") == CpuSet(expected)


@given(st.lists(st.tuples(st.booleans(), SMALL, SMALL), max_size=8))
def test_exclusions_apply_from_left_to_right(items: list[tuple[bool, int, int]]) -> None:
    """``^N`` takes away what stands before it, and what comes after may add it again."""
    expected: set[int] = set()
    words = []
    for is_out, first, more in items:
        if is_out:
            words.append(f"^{first}")
            expected.discard(first)
        else:
            words.append(f"{first}-{first + more}")
            expected.update(range(first, first + more + 1))
    assert CpuSet.parse(",".join(words)) == CpuSet(expected)


@given(st.lists(members, max_size=5), members)
def test_union_and_disjointness(sets: list[frozenset[int]], other: frozenset[int]) -> None:
    """The union holds the members of all; disjoint means that the intersection is empty."""
    everything = union(CpuSet(cpus) for cpus in sets)
    assert everything == CpuSet(frozenset[int]().union(*sets))
    assert everything.isdisjoint(other) == (not everything & other)


@given(sizes)
def test_parse_inverts_format_of_sizes(size: ByteSize) -> None:
    """A size is read back from what it prints, also with a space before the unit."""
    assert ByteSize.parse(str(size)) == size
    assert ByteSize.parse(str(size)[:-3] + " " + str(size)[-3:]) == size
    assert ByteSize.kib(size.in_kib) == size


@given(sizes)
def test_sizes_print_in_the_largest_whole_unit(size: ByteSize) -> None:
    """No larger unit would be a whole number."""
    units = ["KiB", "MiB", "GiB", "TiB"]
    number, unit = int(str(size)[:-3]), str(size)[-3:]
    assert number % 1024 or number == 0 or unit == units[-1]


@given(pci_addresses, pci_addresses)
def test_pci_addresses_parse_and_order(address: PciAddress, other: PciAddress) -> None:
    """An address is read back from what it prints, and orders by domain, bus, slot, function."""
    assert PciAddress.parse(str(address)) == address
    assert PciAddress.parse(str(address).upper()) == address
    assert pickle.loads(pickle.dumps(address)) == address  # noqa: S301 -- our own
    keys = [(each.domain, each.bus, each.slot, each.function) for each in (address, other)]
    assert (address < other, address <= other, address == other) == (
        keys[0] < keys[1],
        keys[0] <= keys[1],
        keys[0] == keys[1],
    )
    assert address != other or hash(address) == hash(other)
