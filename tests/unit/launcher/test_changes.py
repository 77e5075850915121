"""The changes to a VM that runs: the words, and where they must not lead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_launch.talk.changes import Changes, check_owners, parse, with_pins, with_tuning
from kvm_launch.talk.live_changes import RunningVm, placed_as
from kvm_launch.talk.vcpus import by_place
from kvmhooks.errors import PlanError, QemuError, SpecError, UsageError
from kvmhooks.host import Host, read
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding
from kvmhooks.machine.devices.balloon import Balloon
from kvmhooks.placement import Plan, plan, replan
from kvmhooks.qemu.threads import planned_cpus
from kvmhooks.spec import parse_vm
from kvmhooks.values import ByteSize, CpuSet, union
from tests.fakehost import write_host

UUID = "c0d5a2b0-0000-4000-8000-000000000001"


@cache
def host() -> Host:
    with TemporaryDirectory() as folder:
        return read(write_host(Path(folder), packages=2, nodes=2, cores=4, threads=1))


@cache
def owning() -> Plan:
    """A VM with two CPUs of its own and an iothread."""
    text = ('name = "a"\nmachine.accel = "tcg"\nmemory.size = "64MiB"\n[isolation]\n'
            'exclusive = true\n[cpu]\nvcpus = 2\nthreads = 1\nplacement = "dedicated"\n'
            "iothreads = 1\n")  # fmt: skip
    return plan(parse_vm(text, folder=Path("/")), host())


def with_a_balloon() -> Plan:
    before = owning()
    return attrs.evolve(before, spec=attrs.evolve(before.spec, balloon=Balloon(enabled=True)))


def test_words_become_changes() -> None:
    """Every kind of word; a value of [tuning] is TOML's, or a text without quotes."""
    words = ["vcpu.1=3", "iothread.2=0-1", "emulator=4", "vcpus=2", "balloon=1GiB",
             "tuning.shares=5", "tuning.memory.hard=2GiB", "tuning.io.weight=none"]  # fmt: skip
    assert parse(words) == Changes(
        pins={"vCPU 1": CpuSet({3}), "iothread 2": CpuSet({0, 1}), "emulator": CpuSet({4})},
        vcpus=2,
        balloon=ByteSize.parse("1GiB"),
        tuning={"shares": 5, "memory.hard": "2GiB", "io.weight": None},
    )


@given(st.lists(st.text(), min_size=1))
def test_any_words_are_changes_or_a_message(words: list[str]) -> None:
    """Nothing else comes out of it, whatever the words are."""
    with suppress(UsageError):
        assert parse(words) == parse(list(words))


def test_many_or_deep_words_take_no_time() -> None:
    """There are as many as a request has room for, and brackets deeper than a parser goes."""
    begun = time.monotonic()
    many = [f"tuning.k{at}=1" for at in range(8_000)]
    assert len(parse(many).tuning) == 8_000
    with pytest.raises(UsageError, match="found 'emulator' twice"):
        parse([*many, "emulator=0", "emulator=1"])
    assert time.monotonic() - begun < 5
    assert parse(["tuning.shares=" + "[" * 30_000]).tuning == {"shares": "[" * 30_000}


@pytest.mark.parametrize("given", [("memory", "memory.hard"), ("memory.hard", "memory")])
def test_a_key_is_a_value_or_a_table(given: tuple[str, str]) -> None:
    """It does not matter which comes first."""
    with pytest.raises(SpecError, match="found a value and a table, expected one of them"):
        with_tuning(owning().spec, dict.fromkeys(given, "1GiB"))


@given(
    st.dictionaries(
        st.sampled_from(["vCPU 0", "vCPU 1", "iothread 1", "emulator", "vCPU 2"]),
        st.frozensets(st.integers(0, 9), max_size=3).map(CpuSet),
    )
)
def test_pins_keep_what_the_plan_promised(pins: dict[str, CpuSet]) -> None:
    """Each dedicated vCPU has a CPU alone, nothing else of QEMU is on it, and all are online."""
    before = owning()
    try:
        after = with_pins(before, pins, host().online)
    except PlanError:
        return
    cpus = planned_cpus(after)
    assert cpus == planned_cpus(before) | pins
    own = [pin.cpus for pin in after.vcpus]
    assert all(len(cpus) == 1 for cpus in own)
    assert len(union(own)) == len(own)
    assert after.exclusive == union(own)
    assert cpus["emulator"].isdisjoint(after.exclusive)
    assert cpus["iothread 1"].isdisjoint(after.exclusive)
    assert union(cpus.values()) <= host().online


def test_a_vm_that_was_put_elsewhere_finds_back() -> None:
    """Pins by hand that are worse are mended by planning anew, and the guest sees nothing."""
    best = owning()
    elsewhere = (best.vcpus[1].cpus.first() + 4) % 8  # the other package
    far = with_pins(best, {"vCPU 1": CpuSet({elsewhere})}, host().online)
    found = replan(far, host(), memory_moves=False)
    assert found is not None
    after = placed_as(far, found)
    assert (after.spec, after.hardware, after.cells) == (best.spec, best.hardware, best.cells)
    assert replan(after, host(), memory_moves=False) is None


def test_places_are_numbered_as_qemu_does() -> None:
    """Sockets first, threads last; QEMU tells them in the reverse order."""
    slots = [
        {"props": {"socket-id": socket, "core-id": core, "thread-id": thread}}
        for socket in (1, 0)
        for core in (1, 0)
        for thread in (1, 0)
    ]
    assert by_place(slots) == slots[::-1]


@pytest.mark.parametrize("role", ["vCPU 2", "iothread 9"])
def test_a_thread_that_is_not_there_is_told(role: str) -> None:
    """With those that are."""
    with pytest.raises(PlanError, match=f"{role}: found a VM without it, expected one of: vCPU 0"):
        with_pins(owning(), {role: CpuSet({0})}, host().online)


def test_cpus_of_another_vm_are_told_as_its_own() -> None:
    """They are online, so that is not what is wrong with them."""
    holdings = [
        Holding(name="near", uuid=UUID, exclusive=CpuSet({0})),
        Holding(name="far", uuid=UUID, exclusive=CpuSet({1}), dedicated=CpuSet({2})),
    ]
    with pytest.raises(PlanError) as error:
        check_owners({"emulator": CpuSet({3}), "vCPU 0": CpuSet({1})}, holdings, host())
    found = "vCPU 0: found CPUs 1, expected none of 1-2, which are far's alone"
    assert str(error.value) == found
    check_owners({"vCPU 0": CpuSet({1})}, holdings[:1], host())


@pytest.mark.parametrize("error", [QemuError("no"), KeyError("a mistake")], ids=repr)
def test_what_fails_is_taken_back(error: Exception) -> None:
    """Pins that were changed before QEMU failed are as they were, whatever the failure is."""
    moved: list[Plan] = []

    class Qemu:
        async def threads(self) -> dict[str, int]:
            return {}

        async def execute(self, *_: object, **__: object) -> object:
            raise error

    @contextmanager
    def survey() -> Iterator[Inventory]:
        yield Inventory(host=host())

    lease: Any = SimpleNamespace(survey=survey, move=lambda decided, *_: moved.append(decided))
    monitor: Any = Qemu()
    reporter: Any = SimpleNamespace(moved=lambda _: None)
    before = with_a_balloon()
    running = RunningVm(before, 1, monitor, lease, reporter)
    with pytest.raises(type(error)):
        asyncio.run(running.set({"words": ["emulator=7", "balloon=32MiB"]}))
    assert [planned_cpus(plan)["emulator"] for plan in moved] == [
        CpuSet({7}),
        planned_cpus(before)["emulator"],
    ]
    assert running.plan == before
