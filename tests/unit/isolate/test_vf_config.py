"""The settings of virtual functions: set for a VM and set back."""

from __future__ import annotations

import contextlib

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.record.report import FAILED
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, Record, nothing
from tests.isolate_model.pci import Function
from tests.isolate_model.world import BINDS, GivenVm, Killed, World, effective_state, killed_after

PF, FIRST, SECOND = "0000:05:00.0", "0000:05:02.0", "0000:05:02.1"
WANTED = {"mac": "52:54:00:12:34:56", "vlan": "5", "trust": "yes"}
SAID = f"{PF}/0 " + " ".join(f"{name}={text}" for name, text in WANTED.items())


def a_card() -> Kernel:
    """Return a host with a card with a pool of two, which somebody made."""
    kernel = Kernel("plain", 16, 4)
    kernel.pci.plug(PF, Function(5, "ice", ("ice",), total=8))
    kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "2")
    return kernel


@pytest.fixture
def kernel() -> Kernel:
    return a_card()


def guest(settings: str = SAID, more: str = "") -> GivenVm:
    """A VM with the first function."""
    policy = BINDS.replace("managed=", f'functions="{settings}" {more} managed=')
    return GivenVm("guest", CpuSet.parse("6-7"), CpuSet.parse("0-1"), [FIRST], policy)


def test_a_function_is_set_while_its_vm_lives(kernel: Kernel) -> None:
    """A setting that is not named stays, and so does the other function."""
    world = World(kernel)
    before = effective_state(kernel)
    kept = dict(kernel.pci.functions[FIRST].settings)
    vm = guest()
    world.start(vm)
    assert kernel.pci.functions[FIRST].settings == kept | WANTED
    assert kernel.pci.functions[SECOND].settings == kept
    world.stop(vm)
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_what_others_set_meanwhile_stays(kernel: Kernel) -> None:
    """The rest goes back."""
    world = World(kernel)
    vm = guest()
    world.start(vm)
    kernel.pci.functions[FIRST].settings["vlan"] = "9"
    world.stop(vm)
    assert kernel.pci.functions[FIRST].settings["vlan"] == "9"
    assert kernel.pci.functions[FIRST].settings["trust"] == "no"
    assert kernel.record is None


def test_a_function_that_is_gone_needs_nothing_back(kernel: Kernel) -> None:
    """With a pool of ours, or one that somebody took away."""
    world = World(kernel)
    vm = guest()
    world.start(vm)
    kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "0")
    world.stop(vm)
    assert kernel.record is None
    pooled = guest(more=f'pools="{PF}=2"')
    world.start(pooled)
    assert kernel.pci.functions[FIRST].settings["vlan"] == "5"
    world.stop(pooled)
    assert kernel.pci.functions[PF].vfs == []
    assert kernel.record is None


def test_a_setting_that_cannot_be_had_is_a_refusal(kernel: Kernel) -> None:
    """By the driver, or for want of the helper; everything is as before."""
    world = World(kernel)
    before = effective_state(kernel)
    without = Registry(kernel, Record(kernel))
    claim = f"{PF}/0: functions are set by `kvmhooks vfs`, and there is no kvmhooks that"
    vm = guest()
    world.call(vm, "prepare", "begin")
    (held,) = world.state.held.values()
    world.call(vm, "release", "end")
    with pytest.raises(IsolationError, match=claim):
        without.prepare(held.claim)
    kernel.pci.functions[FIRST].settings["trust"] = "-"
    with pytest.raises(IsolationError, match=f"{PF}/0: its driver knows no trust of a function"):
        world.start(vm)
    with pytest.raises(IsolationError, match=f"{PF}/5: found no function 5, expected one of"):
        world.start(guest(SAID.replace("/0", "/5")))
    kernel.pci.functions[FIRST].settings["trust"] = "no"
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_a_card_that_is_down_is_a_refusal(kernel: Kernel) -> None:
    """It would take what it does not apply; one that is up sets its functions."""
    world = World(kernel)
    before = effective_state(kernel)
    kernel.pci.functions[PF].nets = {"enp5s0": "0x1002"}
    vm = guest()
    with pytest.raises(IsolationError, match=f"{PF}/0: found enp5s0 down, expected it up"):
        world.start(vm)
    assert (effective_state(kernel), kernel.record) == (before, None)
    kernel.pci.functions[PF].nets = {"enp5s0": "0x1003"}
    world.start(vm)
    assert kernel.pci.functions[FIRST].settings["vlan"] == "5"
    kernel.pci.functions[PF].nets = {"enp5s0": "0x1002"}
    world.stop(vm)
    assert (effective_state(kernel), kernel.record) == (before, None)


def left_over(kernel: Kernel, world: World) -> None:
    """Leave a function set that could not be set back: vlan 5 and trusted, not 0 and not."""
    vm = guest()
    world.start(vm)
    world._end(vm)
    Registry(kernel, Record(kernel)).release(vm.key)
    del world.vms[vm.name]
    assert world.state.resources


@pytest.mark.parametrize("wanted", ["vlan=7", "vlan=5", "rate=9"])
def test_the_administrators_setting_outlives_what_was_left(kernel: Kernel, wanted: str) -> None:
    """It is what the next VM finds, and what it leaves; all else is as before the first."""
    world = World(kernel)
    before = dict(kernel.pci.functions[FIRST].settings)
    left_over(kernel, world)
    kernel.pci.set_function(PF, 0, ["vlan=9"])
    vm = guest(f"{PF}/0 {wanted}")
    world.start(vm)
    world.stop(vm)
    world.reconcile()
    assert kernel.pci.functions[FIRST].settings == before | {"vlan": "9"}
    assert kernel.record is None


@pytest.mark.parametrize("wanted", ["vlan=7", "vlan=5 rate=9"])
def test_what_was_left_is_set_back_whoever_dies_next(wanted: str) -> None:
    """The next VM's hook dies before or behind any of its writes."""
    for at in range(12):
        kernel = a_card()
        world, before = World(kernel), effective_state(kernel)
        left_over(kernel, world)
        vm = guest(f"{PF}/0 {wanted}")
        kernel.step = killed_after(at)
        with contextlib.suppress(Killed):
            world.call(vm, "prepare", "begin")
        kernel.step = nothing
        world.call(vm, "release", "end")
        world.reconcile()
        assert (effective_state(kernel), kernel.record) == (before, None), at


def test_what_could_not_be_set_back_stays_on_record(kernel: Kernel) -> None:
    """`reconcile` by a kvmhooks that can do it."""
    world = World(kernel)
    vm = guest()
    world.start(vm)
    before = dict(kernel.pci.functions[SECOND].settings)
    world._end(vm)
    report = Registry(kernel, Record(kernel)).release(vm.key)
    assert [result.key for result in report.of(FAILED)] == [f"function/{PF}/0"]
    assert kernel.pci.functions[FIRST].settings["vlan"] == "5"
    world.reconcile()
    assert kernel.pci.functions[FIRST].settings == before
    assert kernel.record is None


@pytest.mark.parametrize("more", ["", f'pools="{PF}=2"'])
def test_the_time_of_functions_counts_as_that_of_devices(kernel: Kernel, more: str) -> None:
    """A card that answers slowly keeps libvirt no longer than the budget; all is as before."""
    world = World(kernel)
    before = effective_state(kernel)
    kernel.takes = 11
    vm = guest(more=more)
    with pytest.raises(IsolationError, match=r"found no time left .*\(budget_devices of \[host\]"):
        world.start(vm)
    kernel.takes = 0
    world.reconcile()
    assert effective_state(kernel) == before
    kernel.takes = 5
    world.start(vm)
    assert kernel.pci.functions[FIRST].settings["vlan"] == "5"
    world.stop(vm)
    assert kernel.record is None
