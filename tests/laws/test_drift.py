"""Laws of `status`: what somebody else has changed is told, with whose it is, and nothing else is.

Each setting and each resource of a VM is changed by hand on models of hosts, one after the other.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator

import pytest

from kvmhooks.isolate.engine.knob import Knob, View
from kvmhooks.isolate.kinds.kind import KINDS
from kvmhooks.isolate.knobs import discover
from kvmhooks.isolate.knobs.irqbalance import _DIRECTORY
from kvmhooks.isolate.record import comparison
from kvmhooks.isolate.record.comparison import Comparison
from kvmhooks.isolate.registry.drift import UNDER_WAY, is_ours
from kvmhooks.isolate.vm.cgroups import Groups
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import KERNEL_THREAD, POLICIES, WORKQUEUES, Irq, Kernel
from tests.isolate_model.mdev import MdevKernel
from tests.isolate_model.pci import Function
from tests.isolate_model.world import ISOLATION, PAGES, Killed, Vm, World, killed_after
from tests.laws.test_resources import MDEV, PF, STORIES
from tests.unit.isolate.test_policy_knobs import BEFORE
from tests.unit.isolate.test_policy_knobs import POLICY as EVERYTHING

FLAVOURS = ("partitions", "systemd", "plain", "legacy")
SOCKET = f"{_DIRECTORY}/irqbalance77.sock"
RESCTRL = "sys/fs/resctrl"
CACHE = "sys/devices/system/cpu/cpu0/cache/index3"
NIC = "0000:03:00.0"
POLICY = (
    EVERYTHING.replace('rt_runtime="-1"', 'rt_runtime="900000"')
    + '<kvmhooks:threads vcpus="fifo:1" uclamp_min="512" sched_core="vcpus"/>'
)
OF_THREADS = {"scheduler": "other:5", "uclamp": "7:1024"}
"""Values that no policy asks for and that nothing was, by the ends of threads' keys."""

CHOSEN = {
    "power.boost": (),
    "cpufreq/policy4/governor": ("ondemand",),
    "cpufreq/policy4/epp": ("balance_performance",),
    "memory.thp": ("always",),
    "memory.ksm": ("2",),
    "disk/sdb/scheduler": ("bfq",),
    "irqbalance/irqs": ("2",),
    "kernel.nmi_watchdog": (),
    "kernel.timer_migration": (),
    "partition": (),
    "cpus-controller": (),
    "exclusive": (),
    "cache": ("7ff",),
}
"""The same by the beginnings of other settings' keys; none where there are two values only."""

LISTS = ("irq/", "workqueue", "net/", "watchdog", "cpus/", "task/", "irqbalance")
NUMBERS = ("memory.", "kernel.", "latency/", "disk/sdb/requests")


class Balanced(Kernel):
    """A host with irqbalance, which takes up at once what it is told, and with much to set."""

    def __init__(self, flavour: str) -> None:
        super().__init__(flavour, 8, 8)
        self.banned, self.banned_irqs = CpuSet({1}), CpuSet()
        self.files |= BEFORE | {
            SOCKET: "",
            f"{RESCTRL}/schemata": "MB:0=100;1=100\nL3:0=fff;1=fff",
            f"{RESCTRL}/info/L3/cbm_mask": "fff",
            f"{RESCTRL}/info/L3/min_cbm_bits": "2",
            f"{CACHE}/level": "3", f"{CACHE}/id": "0", f"{CACHE}/size": "12288K",
        }  # fmt: skip
        self.files["proc/sys/kernel/watchdog_cpumask"] = "0-7"
        self.pci.plug(NIC, Function(7, "e1000e", ("e1000e",), irqs=(6,)))
        self.irqs[6].action = f"vfio-msix[0]({NIC})"

    def ask(self, path: str, text: str, timeout: float) -> str:
        assert (path, timeout > 0) == (SOCKET, True)
        head, _, value = text.partition(" ")
        if head == "setup":
            irqs = "".join(f"IRQ {irq} LOAD 0 " for irq in self.banned_irqs)
            return f"SLEEP 10 {irqs}BANNED {self.banned.format_mask()}"
        self.step(f"irqbalance: {text}")
        what, _, words = value.partition(" ")
        if what == "cpus":
            self.banned = CpuSet() if words == "NULL" else CpuSet.parse(words)
        else:
            numbers = words.removeprefix("irqs ").split()
            self.banned_irqs = CpuSet(int(irq) for irq in numbers if irq.isdecimal())
        return ""


class Rich(Vm):
    """A VM that asks for a part of everything."""

    @property
    def xml(self) -> bytes:
        tune = (
            b"<cachetune vcpus='0'><cache id='0' level='3' type='both' size='2' unit='MiB'/>"
            b"</cachetune></cputune>"
        )
        disk = b"<devices><disk type='block'><source dev='/dev/sdb'/></disk>"
        nic = (
            b"<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' "
            b"bus='0x03' slot='0x00' function='0x0'/></source></hostdev></devices></domain>"
        )
        return super().xml.replace(b"</cputune>", tune).replace(b"</domain>", disk + nic)


def rich(flavour: str) -> World:
    """Return a host with two VMs: the first asks for everything, the second for its CPUs."""
    kernel = Balanced(flavour)
    home = kernel.tasks[kernel.libvirtd].group.path
    kernel.pin(kernel.spawn("canary", group=home), CpuSet({2, 6}))
    world = World(kernel)
    world.start(Rich("a", CpuSet({6, 7}), CpuSet({0, 1}), POLICY))
    kernel.files[f"{RESCTRL}/qemu-1-a-vcpus_0/schemata"] = "L3:0=c00;1=fff"
    world.start(Vm("b", CpuSet({5}), CpuSet({0, 1})))
    kernel.interrupt(1)
    for irq in kernel.irqs.values():  # those that waited for it have come
        if not irq.effective <= irq.mask:
            irq.effective = CpuSet({irq.mask.first()})
    world.reconcile()
    return world


def knobs_of(world: World) -> dict[str, Knob]:
    """Return all that can be set, as a look at the host finds it."""
    state = world.state
    view = View.read(world.kernel, state.held.values())
    groups = Groups.find(world.kernel, view.held)
    return {
        knob.key: knob for knobs in discover(world.kernel, view, groups, state) for knob in knobs
    }


def by_hand(row: Comparison) -> list[str]:
    """Return values that somebody else may write: what was there before, and another."""
    assert row.was is not None
    if row.key.startswith("thread/"):
        end = row.key.rpartition("/")[2]
        return [row.was, *([OF_THREADS[end]] if end in OF_THREADS else [])]
    for beginning, values in CHOSEN.items():
        if row.key.startswith(beginning):
            return [row.was, *values]
    if row.key.startswith(LISTS):
        return [row.was, "1-3,7"]
    assert row.key.startswith(NUMBERS), row
    return [row.was, "3"]


def is_taken(world: World, key: str, value: str) -> bool:
    """Write a value by hand, and return whether the kernel lets anybody: groups above and below
    keep a set and its controller, and a task has no more than its group leaves it."""
    try:
        knobs_of(world)[key].write(world.kernel, value)
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.EACCES} or not key.startswith("cpus"):
            raise
        return False
    is_cut = knobs_of(world)[key].read(world.kernel) != value
    assert not is_cut or key.startswith("task/"), key
    return not is_cut


HELD_BY_ALL = {
    *("irq/default", "irq/0", "irq/6", "irqbalance", "irqbalance/irqs", "workqueue", "watchdog"),
    *("net/eth0/tx-0", "cache/L3/0", "cpufreq/policy4/governor", "latency/cpu7", "memory.thp"),
    *("kernel.halt_poll", "disk/sdb/scheduler", "disk/sdb/requests", "power.boost/no_turbo"),
}
"""Settings of each family that are there on every host."""


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_is_changed_by_hand_has_drifted_and_is_whose_it_is(flavour: str) -> None:
    """Every setting, back to what it was and to something else: told with the file, the values and
    the VMs that ask for it; after `reconcile` nothing has drifted."""
    first = rich(flavour)
    held = {key: row for key, row in first.compared().items() if row.state == comparison.HELD}
    settings = {key: row for key, row in held.items() if not row.kind}
    left_out = {"workqueue"} if flavour == "partitions" else set()
    assert settings.keys() >= {
        key if key.count("/") or "." not in key else next(k for k in settings if k.startswith(key))
        for key in HELD_BY_ALL - left_out
    }
    for key, row in settings.items():
        for value in by_hand(row):
            world = rich(flavour)
            before = world.compared()[key]
            if not is_taken(world, key, value):
                continue
            found = world.drifted()
            assert key in found, (key, value, world.compared().get(key))
            assert (found[key].now, found[key].was) == (value, row.was), key
            assert (found[key].should, found[key].by) == (before.should, row.by), key
            assert found[key].place
            assert found[key].remedy.startswith("run `kvmhooks reconcile`, which makes it "), key
            world.reconcile()
            assert world.drifted() == {}, (key, value)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_change_that_takes_nothing_from_a_vm_is_no_drift(flavour: str) -> None:
    """irqbalance moves interrupts all the time; `reconcile` takes them for the originals."""
    world = rich(flavour)
    world.kernel.put("proc/irq/0/smp_affinity_list", "2-3")
    row = world.compared()["irq/0"]
    assert (row.state, row.now, row.by) == (comparison.UNSETTLED, "2-3", ["a", "b"])
    assert row.why.endswith("which takes nothing from a VM: irqbalance, say")
    world.reconcile()
    assert "irq/0" not in world.compared()


def askers(row: Comparison) -> list[str]:
    """Return whose CPUs a list has lost; an empty one is that of a group without a set."""
    lost = CpuSet.parse(row.was or "0-7") - CpuSet.parse(row.should or "0-7")
    return [name for name, cpus in (("a", {6, 7}), ("b", {5})) if not lost.isdisjoint(CpuSet(cpus))]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_nobody_has_changed_has_not_drifted(flavour: str) -> None:
    """All of it is as asked, but for what the kernel refuses; and each thing names those VMs whose
    CPUs are missing there, or the one whose policy it is."""
    world = rich(flavour)
    rows = world.compared()
    states = {key: row.state for key, row in rows.items() if row.state != comparison.HELD}
    assert set(states.values()) <= {comparison.UNMET, comparison.FORCED}, rows
    assert {key for key, state in states.items() if state == comparison.UNMET} == {"irq/3"}
    assert rows["irq/3"].by == ["a", "b"]
    for key, row in rows.items():
        if key.startswith(("irq/", "workqueue", "net/", "cpus/", "task/")) and key != "irq/6":
            assert row.by == askers(row), row
        elif key.startswith(("irqbalance", "cpus-controller")):
            assert row.by == (["a"] if key.endswith("/irqs") else ["a", "b"]), row
        elif not key.startswith(("exclusive/", "partition/")):
            assert row.by == ["a"], row
    assert rows["irq/6"].by == ["a"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_whoever_asks_is_named_and_nobody_else(flavour: str) -> None:
    """A setting that is not what it was has somebody who asks for it, of all that there are."""
    world = rich(flavour)
    view = View.read(world.kernel, world.state.held.values())
    for key, knob in knobs_of(world).items():
        record = world.state.records.get(key)
        try:
            original = knob.read(world.kernel) if record is None else record.original
        except OSError:
            continue
        if knob.target(original, view) != original:
            assert knob.askers(original, view, world.kernel), key


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_hook_that_dies_is_nobody_elses_change(flavour: str) -> None:
    """At whatever write of a start or a stop it is killed: on its way, or owed."""
    vm = Vm("a", CpuSet({6, 7}), CpuSet({0, 1}), POLICY)
    deaths = [*die(lambda: Balanced(flavour), lambda: vm, every=5)]
    assert len(deaths) > 10
    assert [death for death in deaths if death[1]] == []


def die(
    host: Callable[[], Kernel], guest: Callable[[], Vm], every: int = 1
) -> Iterator[tuple[str, dict[str, Comparison]]]:
    """Yield what has drifted after hooks were killed at each of their writes."""
    for operation in (starting, World.stop):
        for at in range(0, 1_000, every):
            world, vm = World(host()), guest()
            if operation == World.stop:
                world.start(vm)
            world.kernel.step = killed_after(at)
            with contextlib.suppress(Killed):
                operation(world, vm)
                break
            yield f"{operation.__name__} {at}", world.drifted()


def starting(world: World, vm: Vm) -> None:
    """Start a VM, and nobody cleans up when a hook dies."""
    world.serial += 1
    vm.serial = world.serial
    world.call(vm, "prepare", "begin")
    world.call(vm, "start", "begin")
    world._launch(vm)
    world.call(vm, "started", "begin")


def test_kernel_threads_that_a_partition_spreads_are_not_held() -> None:
    """Linux 6.7 to 6.19 puts them on all that is isolated from nobody: nothing of ours stands
    there, and a mask that they had of their own is the kernel's to forget."""
    world = rich("partitions")
    threads = {
        f"task/{tid}/{tid}"
        for tid, task in world.kernel.tasks.items()
        if task.flags & KERNEL_THREAD
    }
    found = {key: row for key, row in world.compared().items() if key in threads}
    assert {row.state for row in found.values()} <= {comparison.FORCED}
    assert world.kernel.tasks[3].mask.isdisjoint({5, 6, 7})


class Failing(Kernel):
    """A host of which a file cannot be read."""

    fails: str = ""

    def read(self, path: str) -> str:
        if path == self.fails:
            raise OSError(errno.EIO, "Input/output error", path)
        return super().read(path)


def test_what_cannot_be_read_is_said_and_is_not_nobodys() -> None:
    """With the reason; and if nothing can be read, nothing is forgotten."""
    kernel = Failing("systemd", 8, 4)
    world = World(kernel)
    world.start(Vm("a", CpuSet({6, 7}), CpuSet({0, 1})))
    kernel.fails = "proc/irq/0/smp_affinity_list"
    row = world.compared()["irq/0"]
    assert (row.state, row.why, row.now, row.by) == (comparison.UNKNOWN, "EIO", None, ["a"])
    assert "  unknown: /proc/irq/0/smp_affinity_list: was 0-7, should be 0-5 (a): EIO\n" in (
        world.told()
    )
    kernel.fails = "sys/devices/system/cpu/online"
    rows = world.compared()
    assert rows.keys() == {key for key, record in world.state.records.items() if is_ours(record)}
    told = [(row.state, row.why, row.by, row.was) for row in rows.values()]
    assert told == [(comparison.UNKNOWN, "EIO", None, world.state.records[key].original)
                    for key in rows]  # fmt: skip


def test_what_is_gone_is_told_and_another_with_its_number_is_another() -> None:
    """A new one that is as VMs ask is no news; a new one that is not is."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    world.start(Vm("a", CpuSet({6, 7}), CpuSet({0, 1})))
    del kernel.irqs[0], kernel.irqs[2]
    kernel.irqs[2] = Irq(CpuSet({0, 1}), managed=False, pending=False, serial=99)
    kernel.irqs[1] = Irq(CpuSet({4, 7}), managed=False, pending=False, serial=100)
    rows = world.compared()
    assert [(rows[f"irq/{n}"].state, rows[f"irq/{n}"].by) for n in (0, 2, 1)] == [
        (comparison.GONE, []), (comparison.GONE, []), (comparison.UNMET, ["a"]),
    ]  # fmt: skip
    assert world.drifted() == {}
    world.reconcile()
    rows = world.compared()
    assert {rows[key].state for key in rows if key.startswith("irq/") and key != "irq/3"} == {
        comparison.HELD
    }


def test_a_value_that_a_call_is_about_to_change_has_not_drifted() -> None:
    """While somebody holds the record's lock, or where the record is another one by now."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    world.start(Vm("a", CpuSet({6, 7}), CpuSet({0, 1})))
    kernel.put("proc/irq/0/smp_affinity_list", "2,6")
    assert [*world.drifted()] == ["irq/0"]
    kernel.locked = {"lock"}
    row = world.compared()["irq/0"]
    assert (row.state, row.why, row.remedy) == (comparison.UNSETTLED, UNDER_WAY, "")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_a_vm_that_is_gone_has_left_is_owed(flavour: str) -> None:
    """Nobody asks for it; what another VM still asks for is not told as held as it stands."""
    kernel = Kernel(flavour, 8, 4)
    world = World(kernel)
    vms = [Vm("a", CpuSet({6, 7}), CpuSet({0, 1})), Vm("b", CpuSet({5}), CpuSet({0, 1}))]
    for vm in vms:
        world.start(vm)
    world.crash(vms[0])
    row = world.compared()["irq/0"]
    assert (row.state, row.should, row.now, row.by) == (comparison.OWED, "0-4,6-7", "0-4", ["b"])
    world.crash(vms[1])
    rows = world.compared()
    assert (rows["irq/0"].state, rows["irq/0"].by) == (comparison.OWED, [])
    assert world.drifted() == {}
    assert "  owed: /proc/irq/0/smp_affinity_list: was 0-7, should be 0-7 (nobody any more), " in (
        world.told()
    )
    world.reconcile()
    assert world.compared() == {}


def test_an_interrupt_that_is_still_taken_on_a_vms_cpu_is_not_settled() -> None:
    """An IO-APIC moves it when it comes next."""
    kernel = Kernel("systemd", 8, 6)
    world = World(kernel)
    world.start(Vm("a", CpuSet({6, 7}), CpuSet({0, 1})))
    row = world.compared()["irq/5"]
    assert (row.state, row.now, row.should) == (comparison.UNSETTLED, "0-5", "0-5")
    assert row.why.startswith("pending until its next interrupt: still on ")


def test_a_preference_that_the_governor_forces_is_the_kernels() -> None:
    """`performance` allows no other (admin-guide/pm/intel_pstate.rst)."""
    kernel = Kernel("plain", 8, 2)
    path = f"{POLICIES}/policy7"
    kernel.files |= {
        f"{path}/affected_cpus": "7", f"{path}/scaling_governor": "powersave",
        f"{path}/energy_performance_preference": "power",
    }  # fmt: skip
    world = World(kernel)
    policy = f'{ISOLATION}<kvmhooks:power epp="balance_power"/>'
    world.start(Vm("a", CpuSet({7}), CpuSet({0, 1}), policy))
    kernel.files[f"{path}/scaling_governor"] = "performance"
    kernel.files[f"{path}/energy_performance_preference"] = "performance"
    row = world.compared()["cpufreq/policy7/epp"]
    assert (row.state, row.by) == (comparison.FORCED, ["a"])
    kernel.files[f"{path}/scaling_governor"] = "powersave"
    assert world.compared()["cpufreq/policy7/epp"].state == comparison.DRIFTED


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_list_without_a_cpu_that_is_offline_is_the_kernels(flavour: str) -> None:
    """Nobody has written there."""
    kernel = Kernel(flavour, 8, 4)
    world = World(kernel)
    world.start(Vm("a", CpuSet({6, 7}), CpuSet({0, 1})))
    kernel.take_offline(3)
    assert world.drifted() == {}
    kernel.bring_online(3)
    assert world.drifted() == {}


# --- resources ----------------------------------------------------------------------------------


def _lose_pages(kernel: Kernel) -> None:
    kernel.pools[PAGES].resize(20)


def _lose_functions(kernel: Kernel) -> None:
    kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", "0")


def _set_function(kernel: Kernel) -> None:
    kernel.pci.set_function(PF, 0, ["vlan=7"])


def _bind_back(kernel: Kernel) -> None:
    kernel.pci.functions[PF].driver = "e1000e"


def _remove_mdev(kernel: Kernel) -> None:
    assert isinstance(kernel, MdevKernel)
    kernel._remove(MDEV)


CHANGES: dict[str, tuple[Callable[[Kernel], None], str, str, str | None, str, str]] = {
    "hugepages": (
        _lose_pages, "0/2048", f"/{PAGES}/nr_hugepages", None, "64 or more", "20",
    ),
    "vfs": (_lose_functions, PF, f"/sys/bus/pci/devices/{PF}/sriov_numvfs", "0", "3", "0"),
    "vf_settings": (
        _set_function, f"{PF}/0", f"the settings of function 0 of {PF} (kvmhooks vfs {PF})",
        "vlan=0 trust=no", "vlan=5 trust=yes", "vlan=7 trust=yes",
    ),
    "functions": (
        _bind_back, PF, f"/sys/bus/pci/devices/{PF}/driver", "e1000e", "vfio-pci", "e1000e",
    ),
    "mdevs": (
        _remove_mdev, MDEV, f"/sys/bus/mdev/devices/{MDEV}",
        "not there", f"nvidia-35 of {MdevKernel.PARENT}", "not there",
    ),
}  # fmt: skip
"""Of each kind a change by hand: what does it, the key, the place, the values."""


def of_kind(world: World, kind: str) -> Comparison:
    """Return what is told of the one thing of a kind."""
    (row,) = [row for row in world.compared().values() if row.kind == kind]
    return row


@pytest.mark.parametrize("kind", KINDS)
def test_a_resource_that_is_changed_by_hand_has_drifted(kind: str) -> None:
    """Held before, named with its VM and its place; while its lock is held it may be a hook's."""
    change, key, place, was, should, now = CHANGES[kind]
    kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
    world = World(kernel)
    world.start(vm)
    row = of_kind(world, kind)
    assert (row.key, row.place, row.by) == (key, place, ["guest"])
    assert row.state == comparison.HELD, row
    assert world.drifted() == {}
    change(kernel)
    row = of_kind(world, kind)
    assert (row.state, row.by, row.was, row.should, row.now) == (
        comparison.DRIFTED, ["guest"], was, should, now,
    )  # fmt: skip
    assert row.remedy.startswith("the next start of guest ")
    assert f"  drifted: {place}: " in world.told()
    kernel.locked = {"devices.lock", "pages.lock"}
    assert of_kind(world, kind).state == comparison.UNSETTLED


@pytest.mark.parametrize("kind", KINDS)
def test_a_resource_that_nobody_asks_for_is_owed(kind: str) -> None:
    """Its VM has ended, and nobody has given it back yet."""
    kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
    world = World(kernel)
    world.start(vm)
    world.crash(vm)
    row = of_kind(world, kind)
    assert (row.state, row.by) == (comparison.OWED, [])
    assert world.drifted() == {}
    world.reconcile()
    assert world.compared() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_dies_on_a_resource_is_nobody_elses_change(kind: str) -> None:
    """At whatever step of a start or a stop."""
    deaths = [*die(STORIES[kind].host, STORIES[kind].vm)]
    assert len(deaths) > 10
    assert [death for death in deaths if death[1]] == []


@pytest.mark.parametrize("kind", ["vfs", "vf_settings", "functions"])
def test_a_resource_of_a_card_that_was_unplugged_is_gone(kind: str) -> None:
    """Another card at its address has nothing of ours."""
    kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
    world = World(kernel)
    world.start(vm)
    kernel.pci.plug(PF, Function(5, "ice", ("ice",), total=8))
    assert of_kind(world, kind).state == comparison.GONE


def test_pages_of_a_node_that_is_gone_are_gone() -> None:
    """The kernel has taken its directory away, and its pages with it."""
    kernel, vm = STORIES["hugepages"].host(), STORIES["hugepages"].vm()
    world = World(kernel)
    world.start(vm)
    del kernel.pools[PAGES]
    row = of_kind(world, "hugepages")
    assert (row.state, row.by, row.now) == (comparison.GONE, ["guest"], None)


def test_a_pool_of_pages_that_cannot_be_read_is_said() -> None:
    """With the reason, and with whose it is; it has not drifted."""
    kernel, vm = Failing("plain", 16, 2), STORIES["hugepages"].vm()
    usual = STORIES["hugepages"].host()
    kernel.files |= usual.files
    kernel.pools |= usual.pools
    world = World(kernel)
    world.start(vm)
    kernel.fails = f"{PAGES}/nr_hugepages"
    row = of_kind(world, "hugepages")
    assert (row.state, row.by, row.now) == (comparison.UNKNOWN, ["guest"], None)
    assert "Input/output error" in row.why
    assert f"  unknown: /{PAGES}/nr_hugepages: " in world.told()


def test_the_workqueues_have_their_place() -> None:
    """The model's file is the one that is named."""
    world = rich("systemd")
    assert world.compared()["workqueue"].place == f"/{WORKQUEUES}"
