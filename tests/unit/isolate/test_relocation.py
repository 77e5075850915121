"""A VM that runs is moved to other CPUs: reserved, loosened, pinned, tightened, looked at."""

from __future__ import annotations

import pytest

from kvmhooks.errors import IsolationError, QemuError
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.record.report import Report
from kvmhooks.isolate.record.state import State
from kvmhooks.isolate.registry.relocation import relocate
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.world import Vm, World, effective_state, intruders

FLAVOURS = ["systemd", "plain", "legacy"]


def running(flavour: str = "plain") -> tuple[World, Vm]:
    """A host with a VM whose vCPUs own 6 and 7."""
    world = World(Kernel(flavour, 8, 10))
    vm = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
    world.start(vm)
    return world, vm


def claim_of(world: World, vm: Vm) -> Claim:
    """Return its claim on record."""
    return world.state.held[vm.key].claim


def pin(world: World, vm: Vm, places: dict[int, int]) -> None:
    """Put vCPUs on CPUs, as libvirt does."""
    kernel = world.kernel
    inner = vm.scope if kernel.flavour == "legacy" else f"{vm.scope}/libvirt"
    for vcpu, cpu in places.items():
        tid = next(tid for tid, task in kernel.tasks.items() if task.name == f"CPU {vcpu}/KVM")
        kernel.put(f"{kernel.base}/{inner}/vcpu{vcpu}/cpuset.cpus", str(cpu))
        kernel.pin(tid, CpuSet({cpu}))
        assert kernel.affinity(tid) == CpuSet({cpu}), "a partition keeps it"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_vm_and_its_isolation_are_moved(flavour: str) -> None:
    """The CPUs are its alone before its threads are there; those it had are the host's again."""
    kernel = Kernel(flavour, 8, 10)
    before = effective_state(kernel)
    world, vm = World(kernel), Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
    world.start(vm)

    def move() -> None:
        awaited = [str(claim.exclusive) for claim, _ in world.state.reserved.values()]
        assert awaited == ["4-5"]
        pin(world, vm, {0: 4, 1: 5})

    relocate(world.registry, claim_of(world, vm), CpuSet.parse("4-5"), move)
    vm.cpus = CpuSet.parse("4-5")
    assert (str(claim_of(world, vm).exclusive), world.state.reserved) == ("4-5", {})
    assert list(intruders(kernel, world)) == []
    world.stop(vm)
    assert effective_state(kernel) == before


def test_cpus_of_another_vm_are_refused_before_anything_moves() -> None:
    """Nothing is pinned, and the record is as it was."""
    world, vm = running()
    world.start(Vm("b", CpuSet({4}), CpuSet({0})))
    before = world.kernel.record
    with pytest.raises(IsolationError, match="b"):
        relocate(world.registry, claim_of(world, vm), CpuSet.parse("4-5"), pytest.fail)
    assert world.kernel.record == before


def test_a_move_that_fails_half_way_claims_where_the_vm_is() -> None:
    """One vCPU went and the other stayed: both have a CPU of their own, and nothing is awaited."""
    world, vm = running()

    def fail() -> None:
        pin(world, vm, {0: 4})
        raise QemuError("no")

    with pytest.raises(QemuError):
        relocate(world.registry, claim_of(world, vm), CpuSet.parse("4-5"), fail)
    vm.cpus = CpuSet.parse("4,7")
    assert (str(claim_of(world, vm).exclusive), world.state.reserved) == ("4,7", {})
    assert list(intruders(world.kernel, world)) == []


def test_pins_that_did_not_hold_are_told() -> None:
    """libvirt or the kernel may say that they did, and they did not."""
    world, vm = running()
    with pytest.raises(IsolationError, match=r"a: found CPUs 6-7 its own, expected 4-5"):
        relocate(world.registry, claim_of(world, vm), CpuSet.parse("4-5"), lambda: None)


def test_a_vcpu_that_is_not_there_keeps_a_cpu_to_come_to() -> None:
    """The guest has given one back: what is kept for it moves with the others."""
    world, vm = running()
    tid = next(tid for tid, task in world.kernel.tasks.items() if task.name == "CPU 1/KVM")
    world.kernel.end(tid)
    wanted = CpuSet.parse("4-5")
    relocate(world.registry, claim_of(world, vm), wanted, lambda: pin(world, vm, {0: 4}))
    assert claim_of(world, vm).exclusive == wanted
    vm.cpus = wanted
    assert list(intruders(world.kernel, world)) == []


@pytest.mark.parametrize("kept", ["4", "5"], ids=["of a vCPU that runs", "of one to come"])
def test_a_cpu_of_the_administrators_is_refused_before_anything_moves(kept: str) -> None:
    """Neither a vCPU goes there nor is it kept for one that may be plugged in."""
    world, vm = running()
    kernel = world.kernel
    kernel.files["etc/kvmhooks/kvmhooks.toml"] = f'[host]\nhousekeeping = "{kept}"\n'
    kernel.end(next(tid for tid, task in kernel.tasks.items() if task.name == "CPU 1/KVM"))
    before = kernel.record
    with pytest.raises(IsolationError, match=f"a: CPUs {kept} are the host's"):
        relocate(world.registry, claim_of(world, vm), CpuSet.parse("4-5"), pytest.fail)
    assert kernel.record == before


@pytest.mark.parametrize("is_late", [True, False], ids=["after all", "after the pins"])
def test_a_claim_that_is_given_up_meanwhile_is_told(*, is_late: bool) -> None:
    """`kvmhooks undo` while the VM moves, also when it has been isolated anew."""
    world, vm = running()
    claim, registry = claim_of(world, vm), world.registry
    look, tighten = registry.look, registry.tighten

    def undone() -> State:
        world.registry.undo(vm.key)
        return look()

    def isolated(key: str) -> Report:
        if not is_late:
            world.registry.undo(vm.key)
        report = tighten(key)
        registry.look = undone  # type: ignore[method-assign]
        return report

    registry.tighten = isolated  # type: ignore[method-assign]
    with pytest.raises(IsolationError, match="its claim was dropped meanwhile"):
        relocate(registry, claim, CpuSet.parse("4-5"), lambda: pin(world, vm, {0: 4, 1: 5}))
