"""PCI functions on the model of a kernel: taken for a VM, given back, refused."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from kvmhooks.cli.status import held_things
from kvmhooks.devices import Uses, judge
from kvmhooks.errors import IsolationError
from kvmhooks.host.bus.devices import PciDevice
from kvmhooks.host.model import Host
from kvmhooks.host.system.system import Kernel as KernelFacts
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.kinds.vf_pools import VfPoolDemand
from kvmhooks.isolate.record.report import FAILED
from kvmhooks.isolate.registry.dry_run import rehearse
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.values import CpuSet, PciAddress
from tests.isolate_model.kernel import Kernel, Record, nothing
from tests.isolate_model.pci import Function
from tests.isolate_model.tree import plant, snapshot
from tests.isolate_model.world import BINDS, GivenVm, Killed, World, hostdev, killed_after

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NIC, DISK, SOUND, ROOT = "0000:05:00.0", "0000:06:00.0", "0000:07:00.1", "0000:00:1c.0"


@pytest.fixture
def kernel() -> Kernel:
    """A network card, a disk's controller that shares its group with a bridge, and a sound card."""
    kernel = Kernel("plain", 16, 4)
    kernel.pci.plug(NIC, Function(5, "e1000e", ("e1000e",)))
    kernel.pci.plug(DISK, Function(6, "nvme", ("nvme",)))
    kernel.pci.plug(ROOT, Function(6, "pcieport", class_="0x060400"))
    kernel.pci.plug(SOUND, Function(None, "snd_hda_intel", ("snd_hda_intel",)))
    return kernel


def guest(*addresses: str, name: str = "guest", cpus: str = "6-7", policy: str = BINDS) -> GivenVm:
    """A VM with these devices."""
    return GivenVm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"), addresses, policy)


def test_a_vm_has_its_devices_while_it_lives_and_the_host_afterwards(kernel: Kernel) -> None:
    """Bound to vfio-pci from `prepare` on; then the driver and the override as they were."""
    kernel.pci.functions[DISK].override = "nvme"
    before = kernel.pci.state()
    world = World(kernel)
    vm = guest(NIC, DISK)
    world.start(vm)
    assert kernel.pci.state() == before | {
        NIC: ("vfio-pci", "vfio-pci"),
        DISK: ("vfio-pci", "vfio-pci"),
    }
    world.stop(vm)
    assert kernel.pci.state() == before
    assert kernel.record is None


def test_vfio_pci_is_loaded_if_need_be(kernel: Kernel) -> None:
    """The hook loads it, as libvirt does for what it manages."""
    kernel.pci.drivers.remove("vfio-pci")
    world = World(kernel)
    world.start(guest(NIC))
    assert kernel.pci.functions[NIC].driver == "vfio-pci"


def test_what_libvirt_manages_is_libvirts(kernel: Kernel) -> None:
    """And without the setting everything is."""
    before = kernel.pci.state()
    world = World(kernel)
    vm = guest(NIC)
    vm.devices = f"<devices>{hostdev(NIC, managed='yes')}</devices>"
    world.start(vm)
    world.stop(vm)
    world.start(guest(NIC, policy='<kvmhooks:isolation exclusive="yes"/>'))
    assert kernel.pci.state() == before


def test_a_device_that_was_set_aside_stays_so(kernel: Kernel) -> None:
    """An administrator has bound it to vfio-pci at boot: nothing is written, then or later."""
    kernel.pci.functions[NIC].driver = "vfio-pci"
    world = World(kernel)
    vm = guest(NIC)
    world.start(vm)
    assert world.state.resources == {}
    world.stop(vm)
    assert kernel.pci.state()[NIC] == ("vfio-pci", "")


def test_a_function_whose_pool_is_not_probed_gets_its_driver_back(kernel: Kernel) -> None:
    """The override names the driver while it is bound, though its table does not name the device.

    So it is for what was bound by `new_id` or while `sriov_drivers_autoprobe` was 0.
    """
    kernel.pci.functions[NIC].matches = ()
    world = World(kernel)
    vm = guest(NIC)
    world.start(vm)
    world.stop(vm)
    assert kernel.pci.state()[NIC] == ("e1000e", "")


def test_what_others_changed_meanwhile_stays(kernel: Kernel) -> None:
    """Somebody took the device from the VM, and wants it to have no driver."""
    world = World(kernel)
    vm = guest(NIC, DISK)
    world.start(vm)
    kernel.pci.functions[NIC].override = "none"
    kernel.pci.functions[NIC].driver = "igb"
    world.stop(vm)
    assert kernel.pci.state()[NIC] == ("igb", "none")
    assert kernel.pci.state()[DISK] == ("nvme", "")


@pytest.mark.parametrize("override", ["", "nvme"])
def test_what_others_changed_after_a_death_stays(override: str) -> None:
    """A hook gave a device back and died; somebody has it by then, and the next VM takes it."""
    cases = 0
    for at in range(40):
        kernel = Kernel("plain", 16, 4)
        nic = kernel.pci.plug(NIC, Function(5, "e1000e", ("e1000e",)))
        world = World(kernel)
        last, new = guest(NIC, name="one"), guest(NIC, name="two", cpus="8")
        before = kernel.pci.state()
        world.start(last)
        kernel.step = killed_after(at)
        with contextlib.suppress(Killed):
            world.stop(last)
        kernel.step = nothing
        if kernel.pci.state() != before or "functions" not in world.state.resources:
            continue
        nic.driver, nic.override = "", override
        world.start(new)
        world.stop(new)
        assert (kernel.pci.state(), kernel.record) == ({NIC: ("", override)}, None), at
        cases += 1
    assert cases


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_device_that_is_unplugged_is_forgotten(
    kernel: Kernel,
    is_replaced: bool,  # noqa: FBT001
) -> None:
    """Nothing of ours stands in it any more, nor in another that came to its place."""
    world = World(kernel)
    vm = guest(NIC)
    world.start(vm)
    del kernel.pci.functions[NIC]
    if is_replaced:
        kernel.pci.plug(NIC, Function(5, "igb", ("igb",)))
    before = kernel.pci.state()
    world.stop(vm)
    assert kernel.pci.state() == before
    assert kernel.record is None


# --- refusals -----------------------------------------------------------------------------------


def in_group(kernel: Kernel, driver: str) -> None:
    """Another function is in the card's group."""
    kernel.pci.functions[SOUND].group = 5
    kernel.pci.functions[SOUND].driver = driver


def mount(kernel: Kernel) -> None:
    """The disk's first partition is mounted."""
    kernel.links["sys/block/nvme0n1"] = f"../devices/pci0000:00/{DISK}/nvme/nvme0/nvme0n1"
    kernel.files["sys/block/nvme0n1/nvme0n1p1/dev"] = "259:1"
    kernel.files["proc/self/mountinfo"] = "36 1 259:1 / /srv rw,relatime shared:1 - ext4 /dev/x rw"


def unload_vfio(kernel: Kernel) -> None:
    """Neither loaded nor to be had."""
    kernel.pci.drivers.remove("vfio-pci")
    kernel.loadable.clear()


REFUSALS: dict[str, tuple[Callable[[Kernel], object], str, str]] = {
    "a device that is not there": (
        lambda kernel: kernel.pci.functions.pop(NIC), NIC,
        f"guest: {NIC}: found no such device, expected one of `kvmhooks devices`",
    ),
    "no IOMMU group": (
        lambda _: None, SOUND, f"guest: {SOUND}: it is in no IOMMU group: nothing would keep",
    ),
    "a part of a group": (
        lambda kernel: in_group(kernel, "snd_hda_intel"), NIC,
        f"guest: {NIC}: IOMMU group 5 goes whole, and in it {SOUND} is snd_hda_intel's: give",
    ),
    "no vfio-pci": (
        unload_vfio, NIC,
        f"guest: {NIC}: vfio-pci is not there: run `modprobe vfio-pci`: the kernel's log",
    ),
    "vfio-pci does not take it": (
        lambda kernel: kernel.pci.functions[NIC].refuses.add("vfio-pci"), NIC,
        f"guest: {NIC}: vfio-pci did not take it: the kernel's log says more",
    ),
    "a mounted disk": (
        mount, DISK,
        (f"guest: {DISK}: nvme0n1p1 is mounted at /srv [/proc/self/mountinfo]: give it another "
         'device, or say devices.allow="mounted"'),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_start_is_refused_with_the_reason(kernel: Kernel, case: str) -> None:
    """And everything is as it was."""
    change, address, message = REFUSALS[case]
    change(kernel)
    before = kernel.pci.state()
    world = World(kernel)
    with pytest.raises(IsolationError) as caught:
        world.start(guest(address))
    assert str(caught.value).startswith(message)
    assert kernel.pci.state() == before
    assert kernel.record is None


@pytest.mark.parametrize("driver", ["", "pci-stub", "vfio-pci"])
def test_a_group_may_hold_what_waits_for_a_vm(kernel: Kernel, driver: str) -> None:
    """The kernel gives such a group to a VM (driver-api/vfio.rst)."""
    in_group(kernel, driver)
    World(kernel).start(guest(NIC))
    assert kernel.pci.state()[SOUND] == (driver, "")


def test_a_group_goes_whole(kernel: Kernel) -> None:
    """With the other function for the same VM; a bridge stays with the host."""
    in_group(kernel, "snd_hda_intel")
    World(kernel).start(guest(NIC, SOUND, DISK))
    assert {kernel.pci.functions[at].driver for at in (NIC, SOUND, DISK)} == {"vfio-pci"}
    assert kernel.pci.functions[ROOT].driver == "pcieport"


@pytest.mark.parametrize(
    ("release", "driver", "refused"),
    [
        ("6.1.0-9-amd64", "shpchp", 1),
        ("5.19.0", "shpchp", 1),
        ("5.18.19", "shpchp", 0),
        ("6.1.0-9-amd64", "pcieport", 0),
        ("6.1.0-9-amd64", "", 0),
    ],
)
def test_a_bridge_has_a_driver_that_leaves_its_group_alone(
    kernel: Kernel, release: str, driver: str, refused: int
) -> None:
    """Newer kernels look at the drivers of bridges too, and give no such group to a VM; a person
    is told the same of the device."""
    kernel.release = release
    kernel.pci.functions[ROOT].driver = driver
    world = World(kernel)
    device = PciDevice(PciAddress.parse(DISK), class_="0x010802", iommu_group=6,
                       iommu_group_members=(PciAddress.parse(ROOT),))  # fmt: skip
    bridge = PciDevice(PciAddress.parse(ROOT), class_="0x060400", driver=driver or None)
    host = Host(pci=(device, bridge), kernel=KernelFacts(release=release))
    (judged,) = judge(host, Uses({}, {}, {}, ()))
    assert [objection.evidence for objection in judged.objections] == [
        f"/sys/bus/pci/devices/{ROOT}/driver"
    ] * refused
    if refused:
        message = (
            f"group 6 goes whole, and in it {ROOT} is a bridge with shpchp, which has to let go"
        )
        with pytest.raises(IsolationError, match=message):
            world.start(guest(DISK))
        assert kernel.pci.functions[DISK].driver == "nvme"
    else:
        world.start(guest(DISK))
        assert kernel.pci.functions[DISK].driver == "vfio-pci"


def test_a_device_is_one_vms(kernel: Kernel) -> None:
    """The second VM is refused with the name of the first, for the device and for its group."""
    in_group(kernel, "")
    world = World(kernel)
    world.start(guest(NIC, name="first"))
    with pytest.raises(IsolationError, match=rf"second: {NIC}: it is first's: stop that"):
        world.start(guest(NIC, name="second", cpus="8"))
    with pytest.raises(IsolationError, match=rf"group 5 goes whole, and in it {NIC} is first's"):
        world.start(guest(SOUND, name="second", cpus="8"))
    assert kernel.pci.functions[NIC].driver == "vfio-pci"


def test_a_use_that_may_end_is_no_refusal(kernel: Kernel) -> None:
    """The policy names it."""
    mount(kernel)
    policy = BINDS.replace("managed=", 'allow="route,mounted" managed=')
    World(kernel).start(guest(DISK, policy=policy))
    assert kernel.pci.functions[DISK].driver == "vfio-pci"


# --- failures half-way --------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(NIC, DISK), (DISK, NIC)])
def test_a_driver_that_hangs_goes_back_as_soon_as_it_can(
    kernel: Kernel, order: tuple[str, str]
) -> None:
    """The start fails with the process that hangs, the other device is back; this one is later."""
    before = kernel.pci.state()
    disk = kernel.pci.functions[DISK]
    disk.hangs = {"nvme"}
    world = World(kernel)
    with pytest.raises(IsolationError, match=rf"{DISK}: its driver does not let go of it: .* 8 s"):
        world.start(guest(*order))
    assert kernel.pci.state() == before | {DISK: ("nvme", "vfio-pci")}
    (stuck,) = (tid for tid, task in kernel.tasks.items() if task.name == "hook")
    report = world.reconcile()
    assert [(result.key, result.why) for result in report.of(FAILED)] == [
        (f"pci/{DISK}", f"process {stuck} still has it")
    ]
    with pytest.raises(IsolationError, match=f"{DISK}: process {stuck} still has it: wait for it"):
        world.start(guest(DISK))
    disk.driver = ""  # at last; nothing is bound to a device that is being let go of
    kernel.end(stuck)
    assert not world.reconcile().is_incomplete
    assert kernel.pci.state() == before
    assert kernel.record is None


def test_a_driver_that_does_not_come_back_is_told_until_it_does(kernel: Kernel) -> None:
    """Its module was unloaded; once it is loaded again `reconcile` gives the device back."""
    world = World(kernel)
    vm = guest(NIC)
    world.start(vm)
    kernel.pci.drivers.remove("e1000e")
    world.stop(vm)
    assert kernel.pci.state()[NIC] == ("", "")
    registry = Registry(kernel, Record(kernel))
    report = registry.reconcile()
    assert "run `modprobe e1000e`" in report.of(FAILED)[0].why
    assert [result.key for result in registry.left_over(report)] == [f"pci/{NIC}"]
    kernel.pci.drivers.add("e1000e")
    assert not world.reconcile().is_incomplete
    assert kernel.pci.state()[NIC] == ("e1000e", "")
    assert kernel.record is None


def test_an_undo_waits_for_the_end_of_qemu(kernel: Kernel) -> None:
    """To take a device from a guest that uses it hangs: it is given back after."""
    world = World(kernel)
    vm = guest(NIC)
    world.start(vm)
    report = Registry(kernel, Record(kernel)).undo(vm.key)
    assert [result.why for result in report.of(FAILED)] == [f"process {vm.pid} still has it"]
    assert kernel.pci.functions[NIC].driver == "vfio-pci"
    world.crash(vm)
    world.reconcile()
    assert kernel.pci.state()[NIC] == ("e1000e", "")
    assert kernel.record is None


def test_what_a_dead_daemon_left_is_given_back_by_the_next_start(kernel: Kernel) -> None:
    """Its hook died at `prepare`; another VM comes, with a device or without."""
    world = World(kernel)
    before = kernel.pci.state()
    world.call(guest(NIC, name="dead"), "prepare", "begin")
    kernel.end(kernel.libvirtd)
    kernel.libvirtd = kernel.spawn("libvirtd", group="system.slice/cron.service")
    world.start(guest(DISK, name="next", cpus="8"))
    assert kernel.pci.state() == before | {DISK: ("vfio-pci", "vfio-pci")}


# --- what a person sees -------------------------------------------------------------------------


def test_a_rehearsal_tells_every_write_to_a_device(kernel: Kernel, tmp_path: Path) -> None:
    """In the order of a start and a stop, and none is made."""
    plant(kernel, tmp_path)
    device = tmp_path / "sys/bus/pci/devices" / NIC
    for name in ("drivers/vfio-pci", "drivers/e1000e"):
        (tmp_path / "sys/bus/pci" / name).mkdir(parents=True)
    (device / "iommu_group/devices" / NIC).mkdir(parents=True)
    (device / "driver").symlink_to("../../drivers/e1000e")
    (device / "driver_override").write_text("(null)\n")
    before = snapshot(tmp_path)
    claim = read_claim(guest(NIC).xml)
    assert claim is not None
    writes = [tuple(write) for write in rehearse(claim, str(tmp_path)) if "/bus/pci/" in write.path]
    bus = "/sys/bus/pci"
    assert writes == [
        ("prepare", f"{bus}/devices/{NIC}/driver_override", "vfio-pci"),
        ("prepare", f"{bus}/drivers/e1000e/unbind", NIC),
        ("prepare", f"{bus}/drivers_probe", NIC),
        ("release", f"{bus}/devices/{NIC}/driver_override", "e1000e"),
        ("release", f"{bus}/drivers/vfio-pci/unbind", NIC),
        ("release", f"{bus}/drivers/e1000e/bind", NIC),
        ("release", f"{bus}/devices/{NIC}/driver_override", ""),
    ]
    assert snapshot(tmp_path) == before


def test_a_rehearsal_foresees_functions(kernel: Kernel, tmp_path: Path) -> None:
    """Those that a card has yet to make: made, set, bound, given back and removed in that order."""
    plant(kernel, tmp_path)
    bus = "sys/bus/pci"
    card, first, second = "0000:09:00.0", "0000:09:10.0", "0000:09:10.2"
    device = tmp_path / bus / "devices" / card
    (tmp_path / bus / "drivers/vfio-pci").mkdir(parents=True)
    (device / "iommu_group/devices" / card).mkdir(parents=True)
    (tmp_path / bus / "drivers/igb").mkdir(parents=True)
    (device / "driver").symlink_to("../../drivers/igb")
    texts = {"class": "0x020000", "sriov_totalvfs": 7, "sriov_numvfs": 0, "sriov_offset": 128,
            "sriov_stride": 2, "sriov_drivers_autoprobe": 1}  # fmt: skip
    for name, value in texts.items():
        (device / name).write_text(f"{value}\n")
    before = snapshot(tmp_path)
    more = f'pools="{card}=2" functions="{card}/1 vlan=5 trust=yes" managed='
    policy = BINDS.replace("managed=", more)
    claim = read_claim(guest(first, second, policy=policy).xml)
    assert claim is not None
    assert claim.asks_of("functions") == (first, second)
    assert claim.of(VfPoolDemand) == (VfPoolDemand(card, 2),)
    done = [tuple(write) for write in rehearse(claim, str(tmp_path)) if card[:7] in str(write)]
    on = f"/{bus}/devices/{card}"

    def bound(function: str) -> list[tuple[str, str, str]]:
        override = f"/{bus}/devices/{function}/driver_override"
        return [
            ("prepare", override, "vfio-pci"),
            ("prepare", f"/{bus}/drivers_probe", function),
        ]

    def given_back(function: str) -> list[tuple[str, str, str]]:
        override = f"/{bus}/devices/{function}/driver_override"
        return [
            ("release", f"/{bus}/drivers/vfio-pci/unbind", function),
            ("release", override, ""),
        ]

    assert done == [
        ("prepare", f"{on}/sriov_drivers_autoprobe", "0"),
        ("prepare", f"{on}/sriov_numvfs", "2"),
        ("prepare", f"{on}/sriov_drivers_autoprobe", "1"),
        ("prepare", f"function 1 of {card}", "vlan=5 trust=yes"),
        *bound(first),
        *bound(second),
        *given_back(first),
        *given_back(second),
        ("release", f"function 1 of {card}", "vlan=(before) trust=(before)"),
        ("release", f"{on}/sriov_numvfs", "0"),
    ]
    assert snapshot(tmp_path) == before


def test_status_tells_what_a_device_had_and_whose_it_is(kernel: Kernel) -> None:
    """Also of one that no VM has any more and that could not be given back."""
    world = World(kernel)
    vm = guest(NIC, DISK)
    world.start(vm)
    first = held_things(world.registry, world.state)["devices"]
    for device in first:
        del device["host"]
    assert first == [
        {"address": NIC, "driver": "e1000e", "override": "", "by": "guest", "waits_for": None},
        {"address": DISK, "driver": "nvme", "override": "", "by": "guest", "waits_for": None},
    ]
    Registry(kernel, Record(kernel)).undo(vm.key)
    document = held_things(world.registry, world.state)
    assert [(device["by"], device["waits_for"]) for device in document["devices"]] == [
        (None, vm.pid)
    ] * 2
    assert world.told().splitlines()[-2:] == [
        f"  device {NIC}: e1000e -> vfio-pci (given back when process {vm.pid} ends)",
        f"  device {DISK}: nvme -> vfio-pci (given back when process {vm.pid} ends)",
    ]
