"""One VM, two VMs, in every order, on every kind of host: the host ends as it was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.hook import entry
from kvmhooks.isolate.record import state
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import KERNEL_THREAD, WORKQUEUES, Kernel
from tests.isolate_model.world import (
    Vm,
    World,
    effective_state,
    intruders,
    requested_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FLAVOURS = ("partitions", "systemd", "plain", "legacy")


@pytest.fixture(params=FLAVOURS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A host with 8 CPUs, 30 interrupts and tasks that their owners have pinned."""
    kernel = Kernel(request.param, 8, 30)
    home = kernel.tasks[kernel.libvirtd].group.path
    for cpus in ("2", "2-3", "6", "5-6", "7"):
        kernel.pin(kernel.spawn("canary", group=home), CpuSet.parse(cpus))
    return kernel


def vm(name: str, cpus: str, emulator: str = "0-1") -> Vm:
    return Vm(name, CpuSet.parse(cpus), CpuSet.parse(emulator))


def test_one_vm_owns_its_cpus_and_the_host_gets_them_back(kernel: Kernel) -> None:
    """While it lives nothing else may run there; afterwards all is as before."""
    world = World(kernel)
    before, asked = effective_state(kernel), requested_state(kernel)
    guest = vm("a", "6-7")
    world.start(guest)
    assert list(intruders(kernel, world)) == []
    world.stop(guest)
    assert effective_state(kernel) == before
    assert requested_state(kernel) == asked
    assert kernel.record is None


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_two_overlapping_lives_end_in_either_order(kernel: Kernel, order: str) -> None:
    """The host ends as it was before the first start, whoever stops last."""
    world = World(kernel)
    before, asked = effective_state(kernel), requested_state(kernel)
    guests = {"a": vm("a", "6-7"), "b": vm("b", "4-5", "0-3,6-7")}
    for guest in guests.values():
        world.start(guest)
    assert list(intruders(kernel, world)) == []
    world.stop(guests[order[0]])
    assert list(intruders(kernel, world)) == []
    world.stop(guests[order[1]])
    assert effective_state(kernel) == before
    assert requested_state(kernel) == asked
    assert kernel.record is None


def test_a_second_claim_on_a_cpu_is_refused_and_the_holder_named(kernel: Kernel) -> None:
    """The first one keeps it, and nothing of the second remains."""
    world = World(kernel)
    world.start(vm("a", "6-7"))
    during = effective_state(kernel)
    with pytest.raises(IsolationError, match="CPUs 6 are a's alone"):
        world.start(vm("b", "5-6"))
    assert effective_state(kernel) == during
    assert list(world.state.held) == [vm("a", "6-7").key]


def test_a_vm_that_dies_unseen_is_given_up_by_reconcile(kernel: Kernel) -> None:
    """`kill -9` of QEMU with libvirtd away: the claim ends with the process."""
    world = World(kernel)
    before = effective_state(kernel)
    guest = vm("a", "6-7")
    world.start(guest)
    world.crash(guest)
    world.reconcile()
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_what_an_administrator_changed_meanwhile_stays(kernel: Kernel) -> None:
    """Their mask is the original from then on, without the CPUs that are taken."""
    world = World(kernel)
    guest = vm("a", "6-7")
    expected = effective_state(kernel) | {"irq/2": "2,6", "irq/default": "0-3"}
    world.start(guest)
    kernel.put("proc/irq/2/smp_affinity_list", "2,6")
    kernel.put("proc/irq/default_smp_affinity", "0f")
    world.reconcile()
    assert list(intruders(kernel, world)) == []
    world.stop(guest)
    after = effective_state(kernel)
    del after["irq/2/effective"], expected["irq/2/effective"]  # where theirs goes, it chooses
    assert after == expected


def test_an_interrupt_that_appears_meanwhile_gets_what_the_default_was(kernel: Kernel) -> None:
    """It inherits our narrowed default, which is nobody's wish."""
    world = World(kernel)
    guest = vm("a", "6-7")
    world.start(guest)
    number = kernel.add_irq()
    assert str(kernel.irqs[number].mask) == "0-5"
    world.stop(guest)
    assert str(kernel.irqs[number].mask) == "0-7"


def test_libvirtd_restarts_and_finds_its_claims(kernel: Kernel) -> None:
    """`reconnect` adopts the running VM; nothing is given back in between."""
    world = World(kernel)
    before = effective_state(kernel)
    guest = vm("a", "6-7")
    world.start(guest)
    libvirtd = kernel.libvirtd
    world.restart_libvirtd()
    assert list(intruders(kernel, world)) == []
    world.stop(guest)
    before[f"task/{kernel.libvirtd}"] = before.pop(f"task/{libvirtd}")
    assert effective_state(kernel) == before


def test_where_partitions_are_refused_everything_else_is_narrowed() -> None:
    """A kernel with partitions that makes ours invalid: the older way, at the same `started`."""
    kernel = Kernel("partitions", 8, 30)
    kernel.pin(kernel.spawn("canary", group="system.slice/cron.service"), CpuSet.parse("6"))
    kernel.groups.refuses_partitions = True
    world = World(kernel)
    before, asked = effective_state(kernel), requested_state(kernel)
    guests = [vm("a", "6-7"), vm("b", "4-5")]
    for guest in guests:
        world.start(guest)
        assert list(intruders(kernel, world)) == []
    assert all(entry.fallback for entry in world.state.held.values())
    assert kernel.groups.isolated() == CpuSet()
    for guest in guests:
        world.stop(guest)
        assert list(intruders(kernel, world)) == []
    assert effective_state(kernel) == before
    assert requested_state(kernel) == asked
    assert kernel.record is None


@pytest.fixture(params=["6.12.0", "7.2.0"])
def modern(request: pytest.FixtureRequest) -> Kernel:
    """A host whose kernel has partitions."""
    kernel = Kernel("partitions", 8, 30, request.param)
    kernel.groups.root.has_controller = True
    return kernel


def threads_of(kernel: Kernel) -> dict[str, str]:
    """Return each kernel thread's CPUs, and what it was given and keeps, by its name and number."""
    return {
        f"{task.name} {tid}": f"{task.mask}, given {task.user_cpus}"
        for tid, task in kernel.tasks.items()
        if task.flags == KERNEL_THREAD
    }


def test_a_kernel_thread_that_is_born_meanwhile_is_like_all_others(modern: Kernel) -> None:
    """kthreadd was given no mask that it could inherit, and no thread keeps a mask of ours."""
    world = World(modern)
    guests = [vm("a", "6-7"), vm("b", "4-5")]
    for guest in guests:
        world.start(guest)
        modern.spawn("psimon", flags=KERNEL_THREAD, parent=2)
        world.reconcile()
    for guest in guests:
        world.stop(guest)
    own = {"kswapd0 4": "0", "irq/1-aerdrv 6": "7"}
    kept = {"kswapd0 4": "0"} if modern.release.startswith("6.") else {}  # lost, and put right
    assert threads_of(modern) == {
        name: f"{own.get(name, '0-7')}, given {kept.get(name)}" for name in threads_of(modern)
    }


def test_the_thread_of_an_interrupt_goes_where_that_goes(modern: Kernel) -> None:
    """Its first mask binds it to nothing: an administrator moves the interrupt later."""
    world = World(modern)
    for guest in (vm("a", "6-7"), vm("b", "4-5")):
        world.start(guest)
        world.stop(guest)
    modern.put("proc/irq/1/smp_affinity_list", "3")
    modern.interrupt(1)
    assert str(modern.affinity(modern.irqs[1].thread)) == "3"


class Racing(Kernel):
    """A kernel on which something happens while the thread of a node is looked at."""

    race: Callable[[], None] | None = None

    def mask(self, tid: int) -> CpuSet:
        race, is_it = self.race, self.tasks[tid].name == "kswapd1"
        if race is not None and is_it:
            self.race = None
            race()
        return super().mask(tid)


def test_a_guest_that_ends_while_it_is_looked_at_costs_no_thread_its_mask() -> None:
    """A partition goes between a look at that and one at a thread: its own mask stays on record."""
    kernel = Racing("partitions", 8, 4)
    thread = kernel.spawn("kswapd1", flags=KERNEL_THREAD, parent=2)
    kernel.tasks[thread].mask = kernel.tasks[thread].preferred = CpuSet.parse("4-7")
    world = World(kernel)
    guest = vm("a", "6-7")
    world.start(guest)

    def a_vcpus_group_goes() -> None:
        groups = [group for group in kernel.groups.root.walk() if group.partition == "isolated"]
        with kernel._tasks_follow():
            kernel.groups.remove(groups[-1].path)

    kernel.race = a_vcpus_group_goes
    world.reconcile()
    assert world.state.records[f"task/{thread}/{thread}"].original == "4-7"
    world.stop(guest)
    assert str(kernel.affinity(thread)) == "4-7"


def test_a_partition_that_ends_meanwhile_is_nobodys_original(modern: Kernel) -> None:
    """Threads, pinned tasks and workqueues have its CPUs again, whichever of the two ends first."""
    pinned = modern.spawn("canary", group="system.slice/cron.service")
    modern.pin(pinned, CpuSet.parse("2-3,6"))
    world = World(modern)
    for ends_first in (True, False):
        modern.isolate("stranger.slice", CpuSet.parse("2-3"))
        guest = vm("a", "6-7")
        world.start(guest)
        assert list(intruders(modern, world)) == []
        if ends_first:
            modern.isolate("stranger.slice", CpuSet())
            world.stop(guest)
        else:
            world.stop(guest)
            assert str(modern.masks[WORKQUEUES]) == "0-1,4-7"
            modern.isolate("stranger.slice", CpuSet())
        assert str(modern.masks[WORKQUEUES]) == str(modern.affinity(2)) == "0-7"
        assert str(modern.affinity(pinned)) == "2-3,6"


def test_cpus_of_somebodys_partition_are_refused_and_the_group_named(modern: Kernel) -> None:
    """Before anything is changed: libvirt would only say that it cannot set an affinity."""
    modern.isolate("stranger.slice", CpuSet.parse("6"))
    before = effective_state(modern)
    world = World(modern)
    with pytest.raises(IsolationError, match="CPUs 6 are in a partition of the group /stranger"):
        world.start(vm("a", "6-7"))
    assert effective_state(modern) == before
    assert modern.record is None
    guest = vm("a", "4-5")
    world.start(guest)
    world.stop(guest)


def test_a_vm_may_have_the_cpus_of_the_partition_that_it_comes_into(modern: Kernel) -> None:
    """An administrator's, which its XML names."""
    modern.isolate("stranger.slice", CpuSet.parse("6-7"))
    world = World(modern)
    guest = vm("a", "6-7")
    placed = guest.xml.replace(
        b"<vcpu>", b"<resource><partition>/stranger</partition></resource><vcpu>"
    )
    entry.carry_out(world.registry, "prepare", placed)
    assert list(world.state.held) == [guest.key]


def test_what_an_older_version_narrowed_is_widened(modern: Kernel) -> None:
    """Upgraded while a VM runs: kthreadd, its children and the others keep no mask."""
    world = World(modern)
    guest = vm("a", "6-7")
    world.start(guest)
    held = world.state
    for tid in (2, 3):
        modern.pin(tid, CpuSet.parse("0-5"))
        known = state.Record("0-7", ours="0-5", identity=str(modern.tasks[tid].start))
        held.records[f"task/{tid}/{tid}"] = known
    modern.record = held.to_text()
    born = modern.spawn("psimon", flags=KERNEL_THREAD, parent=2)
    assert str(modern.affinity(born)) == "0-5"
    world.reconcile()
    assert list(intruders(modern, world)) == []
    world.stop(guest)
    assert {str(modern.affinity(tid)) for tid in (2, 3, born)} == {"0-7"}
    modern.isolate("stranger.slice", CpuSet.parse("2-3"))
    modern.isolate("stranger.slice", CpuSet())
    assert {str(modern.affinity(tid)) for tid in (2, 3, born)} == {"0-7"}
    assert modern.record is None
