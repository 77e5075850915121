"""What virtual functions may do, set for a VM and set back."""

from __future__ import annotations

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.isolate.report import FAILED
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, Record
from tests.isolate_model.pci import Function
from tests.isolate_model.world import BINDS, GivenVm, World, effective_state

PF, FIRST, SECOND = "0000:05:00.0", "0000:05:02.0", "0000:05:02.1"
WANTED = {"mac": "52:54:00:12:34:56", "vlan": "5", "trust": "yes"}
SAID = f"{PF}/0 " + " ".join(f"{name}={text}" for name, text in WANTED.items())


@pytest.fixture
def kernel() -> Kernel:
    """A card with a pool of two, which somebody made."""
    kernel = Kernel("plain", 16, 4)
    kernel.pci.plug(PF, Function(5, "ice", ("ice",), total=8))
    kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "2")
    return kernel


def guest(said: str = SAID, more: str = "") -> GivenVm:
    """A VM with the first function."""
    policy = BINDS.replace("managed=", f'functions="{said}" {more} managed=')
    return GivenVm("guest", CpuSet.parse("6-7"), CpuSet.parse("0-1"), [FIRST], policy)


def test_a_function_is_set_while_its_vm_lives(kernel: Kernel) -> None:
    """What is not named stays, and so does the other function."""
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
    without = Keeper(kernel, Record(kernel))
    claim = f"{PF}/0: functions are set by `kvmhooks functions`, and there is no kvmhooks that"
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


def test_what_could_not_be_set_back_stays_on_record(kernel: Kernel) -> None:
    """`reconcile` by a kvmhooks that can do it."""
    world = World(kernel)
    vm = guest()
    world.start(vm)
    before = dict(kernel.pci.functions[SECOND].settings)
    world._end(vm)
    report = Keeper(kernel, Record(kernel)).release(vm.key)
    assert [one.key for one in report.of(FAILED)] == [f"function/{PF}/0"]
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
