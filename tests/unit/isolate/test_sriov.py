"""Pools of virtual functions on the model of a kernel: made, shared, removed, refused."""

from __future__ import annotations

import errno

import pytest

from kvmhooks.cli.status import held_things
from kvmhooks.errors import IsolationError
from kvmhooks.isolate.record.report import FAILED, REFUSAL
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, Record, nothing
from tests.isolate_model.pci import Function
from tests.isolate_model.world import BINDS, GivenVm, World

PF = "0000:05:00.0"
FIRST, SECOND, THIRD = (f"0000:05:02.{at}" for at in range(3))


def a_card() -> Kernel:
    """Return a host whose card may have eight functions and has none; its driver takes them."""
    kernel = Kernel("plain", 16, 4)
    kernel.pci.plug(PF, Function(5, "ice", ("ice",), total=8))
    return kernel


@pytest.fixture
def kernel() -> Kernel:
    return a_card()


def guest(*addresses: str, name: str = "guest", cpus: str = "6-7", count: int = 3) -> GivenVm:
    """A VM with some of a pool."""
    policy = BINDS.replace("managed=", f'pools="{PF}={count}" managed=')
    return GivenVm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"), addresses, policy)


def drivers(kernel: Kernel) -> dict[str, str]:
    """Of each virtual function."""
    return {at: kernel.pci.functions[at].driver for at in kernel.pci.functions[PF].vfs}


def test_a_pool_is_made_for_the_first_vm_and_removed_with_the_last(kernel: Kernel) -> None:
    """No driver of the host gets hold of a function; the switch for that is back at once."""
    world = World(kernel)
    first = guest(FIRST, name="one")
    second = guest(SECOND, name="two", cpus="8", count=2)
    world.start(first)
    assert drivers(kernel) == {FIRST: "vfio-pci", SECOND: "", THIRD: ""}
    assert kernel.pci.functions[PF].probes
    world.start(second)
    assert drivers(kernel) == {FIRST: "vfio-pci", SECOND: "vfio-pci", THIRD: ""}
    world.stop(first)
    assert drivers(kernel) == {FIRST: "", SECOND: "vfio-pci", THIRD: ""}
    world.stop(second)
    assert drivers(kernel) == {}
    assert kernel.record is None


def test_a_pool_that_was_there_stays(kernel: Kernel) -> None:
    """It is large enough, and its functions get their drivers back."""
    kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "4")
    before = drivers(kernel)
    world = World(kernel)
    vm = guest(FIRST)
    world.start(vm)
    assert "vfs" not in world.state.resources
    assert drivers(kernel) == before | {FIRST: "vfio-pci"}
    world.stop(vm)
    assert drivers(kernel) == before == dict.fromkeys(before, "iavf")
    assert len(before) == 4


def test_a_pool_in_use_stays_until_nobody_uses_it(kernel: Kernel) -> None:
    """Somebody gave one of our functions to the host; that is told, and is no failure."""
    world = World(kernel)
    vm = guest(FIRST)
    world.start(vm)
    kernel.pci.functions[THIRD].driver = "iavf"
    world.stop(vm)
    assert drivers(kernel) == {FIRST: "", SECOND: "", THIRD: "iavf"}
    registry = Registry(kernel, Record(kernel))
    report = registry.reconcile()
    assert [(result.key, result.why) for result in report.of(REFUSAL, FAILED)] == [
        (f"sriov/{PF}", f"{THIRD} is with iavf: its pool stays")
    ]
    assert registry.left_over(report) == []
    kernel.pci.functions[THIRD].driver = ""
    world.reconcile()
    assert drivers(kernel) == {}
    assert kernel.record is None


def test_a_pool_that_somebody_made_anew_is_theirs(kernel: Kernel) -> None:
    """While no VM of ours used it; its size tells."""
    world = World(kernel)
    vm = guest()
    world.start(vm)
    for count in (0, 5):
        kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", str(count))
    world.stop(vm)
    assert len(drivers(kernel)) == 5
    assert kernel.record is None


def test_a_card_that_was_replaced_is_another(kernel: Kernel) -> None:
    """It is none of ours, whatever its pool is."""
    world = World(kernel)
    vm = guest()
    world.start(vm)
    kernel.pci.plug(PF, Function(5, "ice", ("ice",), total=8, probes=False))
    kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "3")
    world.stop(vm)
    assert len(drivers(kernel)) == 3
    assert kernel.record is None


@pytest.mark.parametrize(
    ("count", "present", "message"),
    [
        (9, 0, f"guest: {PF}: found at most 8 virtual functions, expected 9"),
        (3, 2, f"guest: {PF}: found a pool of 2 virtual functions, expected 3: a pool that is not"),
    ],
)
def test_a_pool_that_cannot_be_had_is_refused(
    kernel: Kernel, count: int, present: int, message: str
) -> None:
    """And nothing is changed: the kernel grows no pool (EBUSY)."""
    if present:
        kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", str(present))
    before = kernel.pci.state()
    world = World(kernel)
    with pytest.raises(IsolationError, match="guest") as caught:
        world.start(guest(FIRST, count=count))
    assert str(caught.value).startswith(message)
    assert kernel.pci.state() == before
    assert kernel.record is None


def test_a_card_without_virtual_functions_is_refused(kernel: Kernel) -> None:
    """With what is missing."""
    kernel.pci.functions[PF].total = None
    with pytest.raises(IsolationError, match=f"{PF}: found no SR-IOV, expected a physical"):
        World(kernel).start(guest(FIRST))
    assert kernel.record is None


def test_a_card_whose_driver_cannot_make_any_is_refused(kernel: Kernel) -> None:
    """The kernel's reason is passed on, and the switch is back."""
    kernel.pci.functions[PF].driver = ""
    with pytest.raises(IsolationError, match=f"{PF}: .*no driver bound"):
        World(kernel).start(guest(FIRST))
    assert kernel.pci.functions[PF].probes
    assert kernel.record is None


def test_a_card_that_makes_too_few_keeps_none(kernel: Kernel) -> None:
    """It is told how many there were."""
    kernel.pci.functions[PF].makes = 1
    with pytest.raises(IsolationError, match="made 1 virtual functions instead of 3"):
        World(kernel).start(guest(FIRST))
    assert drivers(kernel) == {}
    assert kernel.record is None


def test_a_card_that_hangs_is_waited_for_with_a_bound(kernel: Kernel) -> None:
    """The functions that it makes later go when its driver has returned."""
    card = kernel.pci.functions[PF]
    card.hangs = {"sriov"}
    world = World(kernel)
    with pytest.raises(IsolationError, match="its driver does not make functions: no answer"):
        world.start(guest(FIRST))
    (stuck,) = (tid for tid, task in kernel.tasks.items() if task.name == "hook")
    report = world.reconcile()
    assert [result.why for result in report.of(FAILED)] == [
        f"process {stuck} still waits for its driver"
    ]
    with pytest.raises(IsolationError, match=f"process {stuck} still waits for its driver"):
        world.start(guest(FIRST))
    kernel.end(stuck)
    card.hangs = set()
    kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "3")
    world.reconcile()
    assert drivers(kernel) == {}
    assert card.probes
    assert kernel.record is None


def test_status_tells_the_pools_that_we_made(kernel: Kernel) -> None:
    """And for whom."""
    world = World(kernel)
    world.start(guest(FIRST, name="one"))
    world.start(guest(SECOND, name="two", cpus="8"))
    document = held_things(world.registry, world.state)
    (pool,) = document["virtual_functions"]
    assert pool.pop("host")["state"] == "held"
    assert pool == {"address": PF, "count": 3, "by": ["one", "two"]}
    assert f"  virtual functions of {PF}: 3 (one, two)" in world.told().splitlines()


def test_the_policy_says_which_pools() -> None:
    """A mistake in it is a refusal with what was expected."""
    vm = guest(FIRST)
    vm.policy = vm.policy.replace(f"{PF}=3", "enp5s0=3")
    with pytest.raises(IsolationError, match=r"devices\.pools: found 'enp5s0=3', expected virtual"):
        World(Kernel("plain", 16, 4)).start(vm)


@pytest.mark.parametrize("fails", [f"{PF}/sriov_numvfs", f"{PF}/sriov_drivers_autoprobe"])
def test_the_switch_is_back_when_a_pool_of_ours_cannot_be_made_anew(
    kernel: Kernel, fails: str
) -> None:
    """Somebody emptied it while its VM runs, and the driver makes none for the next one."""
    world = World(kernel)
    first, second = guest(name="one"), guest(name="two", cpus="8")
    world.start(first)
    kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "0")

    def step(what: str) -> None:
        if what.endswith(fails):
            raise OSError(errno.EIO, "injected", what)

    kernel.step = step
    with pytest.raises(IsolationError, match=r"^two: .*injected"):
        world.start(second)
    kernel.step = nothing
    assert kernel.pci.functions[PF].probes
    world.stop(first)
    assert (kernel.pci.functions[PF].probes, kernel.record) == (True, None)
