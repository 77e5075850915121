"""One VM, two VMs, in every order, on every kind of host: the host ends as it was found."""

from __future__ import annotations

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.world import (
    Vm,
    World,
    effective_state,
    intruders,
    requested_state,
)

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
    """Whoever stops last, the host ends as it was before the first start."""
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
    expected = effective_state(kernel) | {"irq/1": "2,6", "irq/default": "0-3"}
    world.start(guest)
    kernel.put("proc/irq/1/smp_affinity_list", "2,6")
    kernel.put("proc/irq/default_smp_affinity", "0f")
    world.reconcile()
    assert list(intruders(kernel, world)) == []
    world.stop(guest)
    after = effective_state(kernel)
    del after["irq/1/effective"], expected["irq/1/effective"]  # where theirs goes, it chooses
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
    assert all(one.fallback for one in world.state.held.values())
    assert kernel.groups.isolated() == CpuSet()
    for guest in guests:
        world.stop(guest)
        assert list(intruders(kernel, world)) == []
    assert effective_state(kernel) == before
    assert requested_state(kernel) == asked
    assert kernel.record is None
