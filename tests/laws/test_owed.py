"""Laws of what a stopped VM leaves: it is given back as soon as it can be, with any budget.

The model's clock goes on with every look and every write; its CPUs go offline and come back.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.isolate.record.report import FAILED, REFUSAL, Report
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import POLICIES, Kernel, Record, nothing
from tests.isolate_model.world import (
    ISOLATION,
    Killed,
    Vm,
    World,
    effective_state,
    intruders,
    requested_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLAVOURS = ("partitions", "systemd", "plain", "legacy")
RICH = ISOLATION + '<kvmhooks:power governor="performance"/><kvmhooks:memory thp="never"/>'
RCU_SCHED = 3
WAITER = Process(4_000, 1)


def host(flavour: str, release: str = "") -> Kernel:
    """Sixteen CPUs, tasks that their owners have pinned, and a clock of their own for each CPU."""
    kernel = Kernel(flavour, 16, 24, release)
    home = kernel.tasks[kernel.libvirtd].group.path
    for mask in ("1", "3-4", "13", "12-13", "14-15"):
        kernel.pin(kernel.spawn("canary", group=home), CpuSet.parse(mask))
    for cpu in kernel.possible:
        policy = f"{POLICIES}/policy{cpu}"
        kernel.files[f"{policy}/affected_cpus"] = str(cpu)
        kernel.files[f"{policy}/scaling_governor"] = "powersave"
        kernel.files[f"{policy}/energy_performance_preference"] = "balance_power"
    return kernel


def guest(name: str = "a", cpus: str = "12-15") -> Vm:
    return Vm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"), RICH)


def state_of(kernel: Kernel) -> dict[str, str]:
    """Return all masks and what is set; where an interrupt and its thread go is the kernel's
    choice, as long as it is the same place."""
    now = effective_state(kernel)
    for irq in kernel.irqs.values():
        if irq.thread:
            assert now.pop(f"task/{irq.thread}") == str(irq.effective)
    kept = {key: now[key] for key in now if not key.endswith("/effective")}
    return kept | {f"set/{key}": text for key, text in requested_state(kernel).items()}


def changed(before: dict[str, str], kernel: Kernel) -> dict[str, tuple[str | None, str | None]]:
    """Return what is otherwise than it was, and how."""
    now = state_of(kernel)
    keys = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    return {key: (before.get(key), now.get(key)) for key in sorted(keys)}


def stop(world: World, vm: Vm, registry: Registry) -> Report:
    """End a VM, with the hook's `release` within this registry's budget."""
    del world.vms[vm.name]
    world._end(vm)
    return registry.release(vm.key)


def settled(kernel: Kernel, registry: Callable[[], Registry], at_most: int) -> int:
    """Have the process that waits try until nothing is owed; how many attempts that took."""
    for attempt in range(1, at_most + 1):
        report = registry().release_pending(WAITER)
        assert report is not None
        if registry().dismiss(report):
            assert (kernel.record, kernel.waiter) == (None, "")
            return attempt
    raise AssertionError(f"still owed: {kernel.record}")


@pytest.mark.parametrize("flavour", FLAVOURS)
@given(budget=st.floats(0.01, 60), pace=st.floats(0, 10), others=st.booleans())
def test_every_call_comes_nearer(flavour: str, budget: float, pace: float, *, others: bool) -> None:
    """With any time and on any slow host, also where looking takes longer than all of the budget,
    each call leaves less on record, until all is as it was."""
    kernel = host(flavour)
    world = World(kernel)
    before = state_of(kernel)
    vm, other = guest(), guest("b", "8-9")
    world.start(vm)
    if others:
        world.start(other)
    kernel.pace = pace

    def registry() -> Registry:
        return Registry(kernel, Record(kernel), budget)

    if others:
        stop(world, other, registry())
        kernel.pace, own = 0, kernel.pace
        world.reconcile()
        assert list(intruders(kernel, world)) == []
        kernel.pace = own
    left = len(world.state.records)
    stop(world, vm, registry())
    while kernel.record is not None:
        now = len(world.state.records)
        assert now < left
        left = now
        registry().release_pending(WAITER)
    assert changed(before, kernel) == {}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("release", ["", "6.5.0-model"])
def test_groups_come_before_single_threads(flavour: str, release: str) -> None:
    """Most of the host is in its slices: when the last VM stops they have their CPUs again before
    anything else is written, and of the rest nothing was looked at until then."""
    kernel = host(flavour, release)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    writes: list[tuple[str, int]] = []
    kernel.step = lambda what: writes.append((what, kernel.looked))
    begun = kernel.looked
    stop(world, vm, Registry(kernel, Record(kernel)))
    told = [(what, at) for what, at in writes if what not in {"record", "released"}]
    is_group = [what.startswith("systemd: ") or "cpuset.cpus" in what for what, _ in told]
    if flavour in {"systemd", "plain"}:
        count = is_group.index(False)
        assert count >= len(kernel.groups.root.children) - 1
        assert not any("cpuset.cpus" in what for what, _ in told[count:])
    if release and flavour == "systemd":
        looks = told[0][1] - begun
        assert looks < len(kernel.tasks) + len(kernel.irqs), "it looked at more than the groups"


def test_the_first_write_is_made_however_late() -> None:
    """And the others are on record as out of time, none of them lost."""
    kernel = host("systemd")
    world = World(kernel)
    vm = guest()
    world.start(vm)
    kernel.pace = 100
    writes: list[str] = []
    kernel.step = writes.append
    report = stop(world, vm, Registry(kernel, Record(kernel), 1))
    assert any(what.startswith("systemd: ") for what in writes)
    assert "out of time" in {result.why for result in report.of(FAILED)}
    assert world.state.is_owed


@pytest.mark.parametrize("offline", ["13", "12-15", "3", "3,13"])
@pytest.mark.parametrize(
    ("flavour", "release"),
    [("partitions", ""), ("systemd", ""), ("systemd", "6.5.0-model"), ("plain", "")],
)
def test_a_cpu_that_is_offline_at_the_stop(flavour: str, release: str, offline: str) -> None:
    """All that cannot be given back without it is owed until it is online again, and then the
    host is exactly as it was, and nobody has called `reconcile`. Kernels from 6.2 on give most of
    it back at once, offline CPUs included."""
    kernel = host(flavour, release)
    world = World(kernel)
    before = state_of(kernel)
    vm = guest()
    world.start(vm)
    for cpu in CpuSet.parse(offline):
        kernel.take_offline(cpu)
    registry = world.registry
    report = stop(world, vm, registry)
    assert registry.owes(report) is world.state.is_owed
    assert world.state.is_owed or kernel.keeps_user_cpus
    if world.state.is_owed:
        first = registry.release_pending(WAITER)
        assert first is not None
        assert not registry.dismiss(first)
        assert kernel.waiter == "4000 1"
    for cpu in CpuSet.parse(offline):
        kernel.bring_online(cpu)
    assert settled(kernel, lambda: world.registry, 2) == 1
    assert changed(before, kernel) == {}


@pytest.mark.parametrize(
    ("flavour", "release"),
    [("partitions", ""), ("systemd", ""), ("systemd", "6.5.0-model"), ("plain", "")],
)
def test_a_cpu_that_is_offline_at_the_start(flavour: str, release: str) -> None:
    """It is the host's: when it comes back the kernel's threads may use it, while the VM runs and
    after, and none was ever refused what it was to have."""
    kernel = host(flavour, release)
    world = World(kernel)
    before = state_of(kernel)
    kernel.take_offline(3)
    vm = guest()
    world.start(vm)
    threads = [tid for tid, task in kernel.tasks.items() if task.name in {"kthreadd", "rcu_sched"}]
    refused = {result.key for result in world.reconcile().of(REFUSAL)}
    assert refused.isdisjoint(f"task/{tid}/{tid}" for tid in threads)
    kernel.bring_online(3)
    world.reconcile()
    assert all(3 in kernel.tasks[tid].mask for tid in threads)
    assert list(intruders(kernel, world)) == []
    stop(world, vm, world.registry)
    assert changed(before, kernel) == {}


@pytest.mark.parametrize("cpus", ["", "8-9"])
def test_a_cpu_that_is_offline_at_the_stop_beside_another_vm(cpus: str) -> None:
    """One that has CPUs of its own has a follower, which does it; for another somebody waits."""
    kernel = host("systemd")
    world = World(kernel)
    other, vm = guest("b", cpus or "2"), guest()
    vm.policy = ISOLATION
    other.policy = ISOLATION if cpus else '<kvmhooks:memory ksm="0"/>'
    world.start(other)
    world.start(vm)
    kernel.take_offline(13)
    registry = world.registry
    report = stop(world, vm, registry)
    assert registry.owes(report) is (not cpus)
    assert registry.dismiss(report) is bool(cpus)
    kernel.bring_online(13)
    if cpus:
        registry.follow(other.key, WAITER)
    else:
        again = registry.release_pending(WAITER)
        assert again is not None
        assert registry.dismiss(again)
    assert 13 in kernel.tasks[2].mask


@pytest.mark.parametrize(
    ("flavour", "release"),
    [("partitions", ""), ("systemd", ""), ("systemd", "6.5.0-model"), ("plain", "")],
)
def test_a_waiter_that_dies_before_a_cpu_comes_back(flavour: str, release: str) -> None:
    """Killed at any of its writes while CPUs are offline, which are back before the next entry: a
    mask that a write of ours has left without them is nobody's wish, and one that somebody writes
    meanwhile is his."""
    for at in range(1000):
        kernel = host(flavour, release)
        world = World(kernel)
        (owned,) = (tid for tid, task in kernel.tasks.items() if str(task.mask) == "12-13")
        before = state_of(kernel)
        before[f"task/{owned}"] = "2-3"
        vm = guest(cpus="10-11")
        world.start(vm)
        for cpu in (5, 13):
            kernel.take_offline(cpu)
        left = iter(range(at))

        def step(what: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed(what)

        kernel.step = step
        is_over = True
        try:
            stop(world, vm, world.registry)
        except Killed:
            is_over = False
        kernel.step = nothing
        for cpu in (5, 13):
            kernel.bring_online(cpu)
        kernel.pin(owned, CpuSet({2, 3}))
        settled(kernel, lambda world=world: world.registry, 3)  # type: ignore[misc]
        assert changed(before, kernel) == {}, f"killed before write {at}"
        if is_over:
            assert at > 20
            return


@pytest.mark.parametrize(("flavour", "release"), [("partitions", ""), ("systemd", "6.5.0-model")])
def test_a_mask_like_ours_without_the_cpus_that_are_offline_is_its_owners(
    flavour: str, release: str
) -> None:
    """Kernels from 6.2 on keep a kernel thread's mask whole, so that no write of ours left it."""
    for at in range(1000):
        kernel = host(flavour, release)
        world = World(kernel)
        vm = guest(cpus="10-11")
        world.start(vm)
        kernel.take_offline(13)
        left = iter(range(at))

        def step(what: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed(what)

        kernel.step = step
        is_over = False
        with contextlib.suppress(Killed):
            stop(world, vm, world.registry)
            is_over = True
        kernel.step = nothing
        kernel.pin(RCU_SCHED, CpuSet.parse("0-12,14-15"))
        kernel.bring_online(13)
        settled(kernel, lambda world=world: world.registry, 3)  # type: ignore[misc]
        assert str(kernel.tasks[RCU_SCHED].mask) == "0-12,14-15", f"killed before write {at}"
        if is_over:
            assert at > 20
            return


@pytest.mark.parametrize("at", range(30))
def test_a_follower_that_dies_while_cpus_are_offline(at: int) -> None:
    """Its writes have lost them, and are nobody's wish when they are back."""
    kernel = Kernel("plain", 16, 8)
    world = World(kernel)
    before = {tid: task.mask for tid, task in kernel.tasks.items()}
    del before[kernel.irqs[1].thread]
    kernel.take_offline(15)
    vm = guest(cpus="10-11")
    world.start(vm)
    kernel.take_offline(5)
    left = iter(range(at))

    def step(what: str) -> None:
        if next(left, None) is None:
            raise Killed(what)

    kernel.step = step
    with contextlib.suppress(Killed):
        world.reconcile()
    kernel.step = nothing
    world.reconcile()
    for cpu in (5, 15):
        kernel.bring_online(cpu)
    stop(world, vm, world.registry)
    settled(kernel, lambda: world.registry, 2)
    assert {tid: kernel.tasks[tid].mask for tid in before} == before


@pytest.mark.parametrize("release", ["", "7.2.0-model"])
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "while"])
def test_a_thread_whose_only_cpu_is_offline(release: str, *, is_before: bool) -> None:
    """The kernel says that it may run nowhere, which is no mask that could be given back: nothing
    is owed for ever."""
    kernel = host("partitions", release)
    world = World(kernel)
    thread = kernel.irqs[1].thread
    (cpu,) = kernel.affinity(thread)
    vm = guest(cpus="8-9")
    if is_before:
        kernel.take_offline(cpu)
    world.start(vm)
    if not is_before:
        kernel.take_offline(cpu)
        world.reconcile()
    record = world.state.records.get(f"task/{thread}/{thread}")
    assert record is None or record.original
    stop(world, vm, world.registry)
    settled(kernel, lambda: world.registry, 2)
    assert kernel.record is None


@pytest.mark.parametrize("has_other", [True, False], ids=["beside", "alone"])
def test_the_thread_of_an_interrupt_that_stayed_is_back_with_it(*, has_other: bool) -> None:
    """A partition has spread it, and nothing of ours keeps it there after the last that has one."""
    kernel = host("partitions")
    world = World(kernel)
    kernel.put("proc/irq/1/smp_affinity_list", "4-5")
    irq = kernel.irqs[1]
    assert kernel.affinity(irq.thread) == irq.effective == CpuSet({4})
    other, vm = guest("b", "2"), guest(cpus="8-9")
    other.policy = '<kvmhooks:memory ksm="0"/>'
    if has_other:
        world.start(other)
    world.start(vm)
    assert kernel.affinity(irq.thread) == kernel.possible - vm.cpus
    stop(world, vm, world.registry)
    task = kernel.tasks[irq.thread]
    assert (task.mask, task.user_cpus) == (irq.effective, kernel.possible)


@pytest.mark.parametrize("offline", ["13", "3", "3,13"])
@pytest.mark.parametrize("flavour", ["systemd", "plain"])
def test_masks_that_the_kernel_resets_meanwhile_are_nobodys_wish(
    flavour: str, offline: str
) -> None:
    """A busy systemd drops the controller only after the hook: pinned tasks get all possible CPUs
    then, those that are offline among them, and their own masks again when these are back."""
    kernel = host(flavour)
    world = World(kernel)
    before = state_of(kernel)
    vm = guest()
    world.start(vm)
    for cpu in CpuSet.parse(offline):
        kernel.take_offline(cpu)
    stop(world, vm, world.registry)
    pinned = [int(key.split("/")[2]) for key in world.state.records if key.startswith("task/")]
    for tid in pinned:
        kernel.tasks[tid].mask = kernel.possible
    assert world.registry.release_pending(WAITER) is not None
    for cpu in CpuSet.parse(offline):
        kernel.bring_online(cpu)
    settled(kernel, lambda: world.registry, 2)
    assert changed(before, kernel) == {}


def test_a_cpu_that_v1_has_forgotten_comes_back_as_well() -> None:
    """There the kernel takes an offline CPU out of every group for good; what we had taken out
    before is given back all the same, but not what we never touched."""
    kernel = host("legacy")
    world = World(kernel)
    before = state_of(kernel)
    vm = guest()
    world.start(vm)
    kernel.take_offline(13)
    stop(world, vm, world.registry)
    kernel.bring_online(13)
    assert settled(kernel, lambda: world.registry, 2) == 1
    assert changed(before, kernel).keys() <= {"set/machine.slice", "effective/machine.slice"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_one_that_waits_is_enough(flavour: str) -> None:
    """A second process ends at once while the first one lives, and takes its place when it died."""
    kernel = host(flavour)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    kernel.take_offline(13)
    stop(world, vm, world.registry)
    first, second = (Process(kernel.spawn("waits"), 0) for _ in range(2))
    for process in (first, second):
        process.start = kernel.tasks[process.pid].start
    assert world.registry.release_pending(first) is not None
    assert world.registry.release_pending(second) is None
    kernel.end(first.pid)
    assert world.registry.waiter() is None
    assert world.registry.release_pending(second) is not None
    found = world.registry.waiter()
    assert found is not None
    assert found.pid == second.pid


def test_nobody_waits_where_nothing_is_owed() -> None:
    """After a stop that gave everything back, and while a VM holds what is on record."""
    kernel = host("systemd")
    world = World(kernel)
    vm, other = guest(), guest("b", "8-9")
    world.start(vm)
    world.start(other)
    registry = world.registry
    assert not registry.owes(stop(world, vm, registry))
    registry = world.registry
    assert not registry.owes(stop(world, other, registry))
    assert kernel.record is None
