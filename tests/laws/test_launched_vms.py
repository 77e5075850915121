"""kvm-launch isolates as libvirt's hook does, beside its VMs, and may die anywhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvm_launch.host.claimed_plan import plan_and_claim
from kvm_launch.host.lease import Lease
from kvmhooks.errors import IsolationError, PlanError
from kvmhooks.host import Host, read
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.values import CpuSet
from tests.fakedevices import FakePci
from tests.fakehost import write_host
from tests.isolate_model.kernel import Record, nothing
from tests.isolate_model.launched import LaunchedVm, LaunchKernel, looking
from tests.isolate_model.pci import Function
from tests.isolate_model.world import Vm, World, effective_state, intruders, requested_state
from tests.laws.test_every_instruction import FLAVOURS, Deaths

OTHER = CpuSet.parse("4-6")
DEVICE = "0000:05:00.0"


@cache
def host() -> Host:
    """16 CPUs, as the model has; the first is the host's own."""
    with TemporaryDirectory() as folder:
        pci = (FakePci(DEVICE, iommu_group=5),)
        return read(write_host(Path(folder), cores=16, numbering="adjacent", pci=pci))


def spec(name: str = "guest", vcpus: int = 3, devices: str = "") -> VmSpec:
    """A VM that wants CPUs of its own."""
    return parse_vm(
        f'name = "{name}"\nmachine.accel = "tcg"\nmemory.size = "1GiB"\n'
        f'cpu = {{ vcpus = {vcpus}, placement = "dedicated" }}\nisolation.exclusive = true\n'
        + devices,
        folder=Path("/"),
    )


def world_of(flavour: str) -> tuple[World, LaunchKernel]:
    """A host with pinned tasks."""
    kernel = LaunchKernel(flavour, 16, 12)
    home = kernel.tasks[kernel.libvirtd].group.path
    for mask in ("1", "5-6", "15", "1-2,14"):
        kernel.pin(kernel.spawn("canary", group=home), CpuSet.parse(mask))
    return World(kernel), kernel


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_launched_vm_owns_its_cpus_beside_libvirts_and_leaves_nothing(flavour: str) -> None:
    """They are planned around each other; whoever ends first, the other stays alone."""
    world, kernel = world_of(flavour)
    before, asked = effective_state(kernel), requested_state(kernel)
    theirs, ours, more = Vm("theirs", OTHER, CpuSet({0})), LaunchedVm("ours"), LaunchedVm("more")
    world.start(theirs)
    first = ours.run(world, spec("ours"), host())
    second = more.run(world, spec("more"), host())
    assert (first.left, second.left) == ((), ())
    assert ours.cpus | more.cpus | OTHER == CpuSet.parse("1-9")
    assert list(intruders(kernel, world)) == []
    with pytest.raises(PlanError, match=r"cpu\.vcpus"):
        LaunchedVm("large").run(world, spec("large", vcpus=8), host())
    ours.stop(world, first)
    assert list(intruders(kernel, world)) == []
    world.stop(theirs)
    assert list(intruders(kernel, world)) == []
    more.stop(world, second)
    assert effective_state(kernel) == before
    assert requested_state(kernel) == asked
    assert kernel.record is None


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_kvm_launch_may_die_at_any_write(flavour: str) -> None:
    """Killed with -9, it takes its QEMU along; the next entry restores, other VMs stay alone.

    The device that the VM has goes back to its driver as well.
    """
    world, kernel = world_of(flavour)
    kernel.pci.plug(DEVICE, Function(5, "e1000e", ("e1000e",)))
    before, asked = effective_state(kernel), requested_state(kernel)
    other = Vm("other", OTHER, CpuSet({0}))
    world.start(other)
    guest = LaunchedVm("guest")

    def aftermath() -> None:
        world.vms.pop("guest", None)
        guest.end(kernel)
        kernel.end(kernel.supervisor)
        if guest.pid == 0 and kernel.has_systemd:
            kernel.forget_scope("machine.slice/machine-kvm-launch-guest.scope")
        world.reconcile()
        assert list(intruders(kernel, world)) == []
        world.stop(other)
        before.pop(f"task/{kernel.supervisor}")
        assert effective_state(kernel) == before
        left = {path: value for path, value in requested_state(kernel).items() if path in asked}
        assert left == asked
        assert kernel.record is None

    kernel.step = deaths = Deaths(kernel, aftermath, 1)
    lease = guest.run(world, spec(devices=f'[[pci]]\naddress = "{DEVICE}"\n'), host())
    assert kernel.pci.functions[DEVICE].driver == "vfio-pci"
    deaths("the guest runs")
    guest.stop(world, lease)
    deaths("the end")
    assert not deaths.failed, deaths.failed[0]
    assert deaths.count > 50


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_claim_that_is_refused_changes_nothing(flavour: str) -> None:
    """CPUs that another VM takes between plan and claim; a VM that runs already."""
    world, kernel = world_of(flavour)
    registry = Registry(kernel, Record(kernel))
    guest = LaunchedVm("guest")
    lease = guest.run(world, spec(), host())
    before, record = effective_state(kernel), kernel.record

    def no_write(what: str) -> None:
        assert what == "record", what

    kernel.step = no_write
    second = Lease(registry, kernel.libvirtd)
    with second, pytest.raises(IsolationError, match=f"runs already: process {guest.pid}"):
        plan_and_claim(second, spec(), looking(kernel, host()))
    assert (second.claim, effective_state(kernel), kernel.record) == (None, before, record)
    kernel.step = nothing
    guest.stop(world, lease)
    assert kernel.record is None
