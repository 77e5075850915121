"""The hook dies before and after each of its writes, and the next entry puts it right.

At each write the process forks: the child is the world in which the hook died there. It runs what
comes next (libvirt's `release`, or `reconcile` after libvirtd died as well), checks that every VM
that lives is alone on its CPUs, stops them, and compares the host with what it was.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import TYPE_CHECKING

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, Pool, nothing
from tests.isolate_model.pci import Function
from tests.isolate_model.world import (
    BINDS,
    PAGES,
    GivenVm,
    PagedVm,
    Vm,
    World,
    effective_state,
    intruders,
    requested_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FLAVOURS = ("partitions", "systemd", "plain", "legacy")


class Deaths:
    """Forks at every write, and counts."""

    def __init__(self, kernel: Kernel, aftermath: Callable[[], None], every: int) -> None:
        self.kernel = kernel
        self.aftermath = aftermath
        self.every = every
        self.count = 0
        self.seen = 0
        self.failed: list[str] = []

    def __call__(self, what: str) -> None:
        """Let the hook die here, in a child; the parent goes on."""
        self.seen += 1
        if self.seen % self.every:
            return
        self.count += 1
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            self._die(writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            output = file.read().decode()
        os.waitpid(child, 0)
        if output != "fine":
            self.failed.append(f"died before write {self.seen} ({what}):\n{output}")

    def _die(self, writer: int) -> None:
        sys.settrace(None)  # what coverage would see in this world is lost with it
        self.kernel.step = nothing
        message = "fine"
        try:
            self.aftermath()
        except BaseException:  # noqa: BLE001 -- whatever it is, the parent reports it
            message = traceback.format_exc(limit=-3)
        os.write(writer, message.encode()[-60_000:])
        os._exit(0)


def die_everywhere(flavour: str, others: int, irqs: int, every: int = 1) -> int:
    """Start and stop a VM beside ``others``; return at how many writes its hooks died."""
    kernel = Kernel(flavour, 16, irqs)
    home = kernel.tasks[kernel.libvirtd].group.path
    for mask in ("1", "5-6", "15", "2,14"):
        kernel.pin(kernel.spawn("canary", group=home), CpuSet.parse(mask))
    world = World(kernel)
    before, asked = effective_state(kernel), requested_state(kernel)
    for at in range(others):
        cpus = CpuSet(range(4 + 3 * at, 7 + 3 * at))
        world.start(Vm(f"other{at}", cpus, CpuSet({0, 1})))
    guest = Vm("guest", CpuSet({13, 14, 15}), CpuSet({0, 2}))

    def check() -> None:
        assert list(intruders(kernel, world)) == []
        for vm in list(world.vms.values()):
            world.stop(vm)
        assert effective_state(kernel) == before
        assert requested_state(kernel) == asked
        assert kernel.record is None

    def after_start() -> None:
        world.vms.pop("guest", None)
        world._end(guest)
        world.call(guest, "release", "end")
        check()

    def after_start_without_libvirtd() -> None:
        world.vms.pop("guest", None)
        world._end(guest)
        kernel.end(kernel.libvirtd)
        world.reconcile()
        before.pop(f"task/{kernel.libvirtd}")
        check()

    def after_stop() -> None:
        world.vms.pop("guest", None)
        world.reconcile()
        check()

    count = 0
    for aftermath in (after_start, after_start_without_libvirtd):
        kernel.step = deaths = Deaths(kernel, aftermath, every)
        world.start(guest)
        deaths("the end")
        assert not deaths.failed, deaths.failed[0]
        kernel.step = deaths2 = Deaths(kernel, after_stop, every)
        world.stop(guest)
        deaths2("the end")
        assert not deaths2.failed, deaths2.failed[0]
        count += deaths.count + deaths2.count
    return count


@pytest.mark.parametrize("wanted", [64, 100])
def test_the_hook_may_die_while_it_gets_huge_pages(wanted: int) -> None:
    """With enough after compaction, and with too few: the pool is as it was once the VM is gone."""
    kernel = Kernel("plain", 16, 4)
    kernel.files["sys/devices/system/node/node0/compact"] = ""
    kernel.pools[PAGES] = Pool(total=10, used=8, limit=40, compacted=90)
    world = World(kernel)
    guest = PagedVm("guest", CpuSet({13, 14, 15}), CpuSet({0, 2}), pages=wanted)

    def aftermath() -> None:
        world.vms.pop("guest", None)
        world._end(guest)
        world.call(guest, "release", "end")
        world.reconcile()
        assert kernel.pools[PAGES].total == 10
        assert kernel.record is None

    kernel.step = deaths = Deaths(kernel, aftermath, every=1)
    with contextlib.suppress(IsolationError):
        world.start(guest)
        world.stop(guest)
    deaths("the end")
    assert deaths.count > 10
    assert not deaths.failed, deaths.failed[0]


@pytest.mark.parametrize("ending", ["taken", "the second driver refuses", "the second hangs"])
@pytest.mark.parametrize("override", ["", "e1000e"])
def test_the_hook_may_die_while_drivers_change(ending: str, override: str) -> None:
    """Each function has its driver and its override again once the VM is gone."""
    kernel = Kernel("plain", 16, 4)
    nic = Function(7, "e1000e", ("e1000e",), override=override)
    kernel.pci.plug("0000:05:00.0", nic)
    disk = Function(8, "nvme", ("nvme",))
    disk.refuses = {"vfio-pci"} if "refuses" in ending else set()
    disk.hangs = {"nvme"} if "hangs" in ending else set()
    kernel.pci.plug("0000:06:00.0", disk)
    kernel.pci.plug("0000:09:00.0", Function(9, class_="0x030000"))
    world = World(kernel)
    before = effective_state(kernel)
    guest = GivenVm("guest", CpuSet({13, 14, 15}), CpuSet({0, 2}), [*kernel.pci.functions])

    def aftermath() -> None:
        world.vms.pop("guest", None)
        world._end(guest)
        world.call(guest, "release", "end")
        disk.hangs = set()
        for tid in [tid for tid, task in kernel.tasks.items() if task.name == "hook"]:
            kernel.end(tid)
        world.reconcile()
        assert effective_state(kernel) == before
        assert kernel.record is None

    kernel.step = deaths = Deaths(kernel, aftermath, every=1)
    with contextlib.suppress(IsolationError):
        world.start(guest)
        assert {function.driver for function in kernel.pci.functions.values()} == {"vfio-pci"}
        world.stop(guest)
    deaths("the end")
    assert deaths.count > 10
    assert not deaths.failed, deaths.failed[0]


@pytest.mark.parametrize("ending", ["made", "too few", "hangs"])
@pytest.mark.parametrize("probes", [True, False])
def test_the_hook_may_die_while_virtual_functions_are_made(
    ending: str,
    probes: bool,  # noqa: FBT001
) -> None:
    """There are none once the VM is gone, and the drivers' switch is as it was."""
    kernel = Kernel("plain", 16, 4)
    card = Function(7, "ice", ("ice",), total=8, probes=probes)
    card.makes = 1 if ending == "too few" else None
    card.hangs = {"sriov"} if ending == "hangs" else set()
    kernel.pci.plug("0000:05:00.0", card)
    world = World(kernel)
    before = effective_state(kernel)
    attributes = 'pools="0000:05:00.0=2" functions="0000:05:00.0/1 vlan=5 trust=yes" managed='
    policy = BINDS.replace("managed=", attributes)
    cpus = CpuSet({13, 14, 15}), CpuSet({0, 2})
    guest = GivenVm("guest", *cpus, ["0000:05:02.0", "0000:05:02.1"], policy)

    def aftermath() -> None:
        world.vms.pop("guest", None)
        world._end(guest)
        world.call(guest, "release", "end")
        card.hangs = set()
        for tid in [tid for tid, task in kernel.tasks.items() if task.name == "hook"]:
            kernel.end(tid)
        world.reconcile()
        assert effective_state(kernel) == before
        assert kernel.record is None

    kernel.step = deaths = Deaths(kernel, aftermath, every=1)
    with contextlib.suppress(IsolationError):
        world.start(guest)
        assert [kernel.pci.functions[address].driver for address in card.vfs] == ["vfio-pci"] * 2
        assert card.probes is probes
        world.stop(guest)
    deaths("the end")
    assert deaths.count > 5
    assert not deaths.failed, deaths.failed[0]


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_hook_may_die_at_any_write(flavour: str, others: int) -> None:
    """With one and with three VMs alive, at start and at stop, on each kind of host."""
    assert die_everywhere(flavour, others, irqs=12) > 100


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_hook_may_die_at_any_of_two_thousand_writes(flavour: str, others: int) -> None:
    """The same with more interrupts: each kind of host has an eighth of them."""
    count = die_everywhere(flavour, others, irqs=40)
    print(f"the hook died at {count} writes")
    assert count >= 250
