"""The objections to giving a device away, with their evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmhooks.cli.main import main
from kvmhooks.devices import list_devices
from kvmhooks.isolate.resources.host_uses import uses_of
from kvmhooks.isolate.system.system import System
from tests.fakedevices import FakePci, nic_with_functions
from tests.fakehost import write_host

UUID = "6b1f4a52-0f5c-4c0e-9f5e-7a0c3f7f6d10"
DISK, SPARE, NIC, VGA = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0"
VF = "0000:03:02.0"

HOST = (
    FakePci(DISK, class_="0x010802", driver="nvme", iommu_group=1, block=("nvme0n1",), reset="flr"),
    FakePci(
        SPARE, class_="0x010802", driver="nvme", iommu_group=2, block=("nvme1n1",), reset="flr"
    ),
    *nic_with_functions(NIC, 2, total=8, node=0, group=3),
    FakePci(VGA, class_="0x030000", driver="i915", iommu_group=20, boot_vga=True, reset="bus"),
    FakePci("0000:04:00.1", class_="0x040300", iommu_group=20, reset="flr"),
    FakePci("0000:00:1c.0", class_="0x060400", driver="pcieport", iommu_group=20),
)

PARTITION = "sys/devices/pci0000:01/0000:01:00.0/nvme/nvme0/nvme0n1"
MOUNTED = "36 1 259:1 / {at} rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw"
ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"
IPV6 = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} 00000400 00000001 00000000 {{flags}} {{iface}}"

CONSOLE = (
    "vtcon1 is the active console ((M) frame buffer device) [/sys/class/vtconsole/vtcon1/bind]"
)

ON_DISK = {f"{PARTITION}/dev": "259:0", f"{PARTITION}/nvme0n1p1/dev": "259:1"}

OBJECTIONS = {
    "nothing": ({}, []),
    "a mounted partition": (
        {**ON_DISK, "proc/self/mountinfo": MOUNTED.format(at="/srv/my\\040data")},
        [f"{DISK} mounted: nvme0n1p1 is mounted at /srv/my data [/proc/self/mountinfo]"],
    ),
    "many mounts": (
        {
            **ON_DISK,
            "proc/self/mountinfo": "\n".join(MOUNTED.format(at=f"/{at}") for at in range(5)),
        },
        [f"{DISK} mounted: nvme0n1p1 is mounted at /0, /1, /2 and 2 more [/proc/self/mountinfo]"],
    ),
    "swap on LVM on the disk": (
        {
            **ON_DISK,
            f"{PARTITION}/nvme0n1p1/holders/dm-0": "",
            "sys/block/dm-0/dev": "253:0",
            "proc/swaps": "Filename Type Size Used Priority\n/dev/dm-0 partition 1 0 -2",
        },
        [
            f"{DISK} held: nvme0n1p1 carries dm-0 [/sys/class/block/nvme0n1p1/holders]",
            f"{DISK} swap: dm-0 is swapped to (it is on nvme0n1p1) [/proc/swaps]",
        ],
    ),
    "a Btrfs over two disks": (
        {
            **ON_DISK,
            "sys/devices/pci0000:02/0000:02:00.0/nvme/nvme0/nvme1n1/dev": "259:9",
            f"sys/fs/btrfs/{UUID}/devices/nvme0n1/dev": "",
            f"sys/fs/btrfs/{UUID}/devices/nvme1n1/dev": "",
            "proc/self/mountinfo": "36 1 0:40 /@ / rw - btrfs /dev/nvme1n1 rw,subvol=/@",
        },
        [
            f"{DISK} mounted: nvme0n1 is mounted at / [/proc/self/mountinfo]",
            f"{SPARE} mounted: nvme1n1 is mounted at / [/proc/self/mountinfo]",
        ],
    ),
    "the default route": (
        {
            "proc/net/route": f"{ROUTES}\nens3\t00000000\t01\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
            "eth9\t0000A8C0\t00\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"
        },
        [f"{NIC} route: ens3 carries the default route [/proc/net/route]"],
    ),
    "the default route over a bridge": (
        {
            "sys/class/net/br0/bridge/stp_state": "0",
            "sys/devices/pci0000:03/0000:03:00.0/net/ens3/upper_br0/x": "",
            "proc/net/ipv6_route": (
                f"{IPV6.format(flags='00000003', iface='br0')}\n"
                f"{IPV6.format(flags='00200200', iface='lo')}"
            ),
        },
        [
            f"{NIC} route: ens3 carries the default route through br0 [/proc/net/ipv6_route]",
            f"{NIC} bridge: ens3 is a port of br0 [/sys/class/net/ens3/upper_br0]",
        ],
    ),
    "a default route with damaged flags": (
        {"proc/net/ipv6_route": IPV6.format(flags="noflags", iface="ens3")},
        [f"{NIC} route: ens3 carries the default route [/proc/net/ipv6_route]"],
    ),
    "the only address": (
        {"proc/net/route": f"{ROUTES}\nens3\t0000A8C0\t00\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"},
        [f"{NIC} route: ens3 carries the only address of this host [/proc/net/route]"],
    ),
    "the console, whose group the sound is in": (
        {
            "sys/class/vtconsole/vtcon0/name": "(S) dummy device",
            "sys/class/vtconsole/vtcon0/bind": "1",
            "sys/class/vtconsole/vtcon1/name": "(M) frame buffer device",
            "sys/class/vtconsole/vtcon1/bind": "1",
        },
        [
            f"{VGA} console: {CONSOLE}",
            f"0000:04:00.1 group: {VGA} is in the same group 20: {CONSOLE}",
        ],
    ),
    "interrupt remapping that is switched off": (
        {"proc/cmdline": "root=/dev/sda1 intremap=off"},
        [
            f"{address} remapping: interrupts are not remapped: the VM could send any interrupt "
            "to the host [intremap=off in /proc/cmdline]"
            for address in (DISK, SPARE, NIC, VF, "0000:03:02.1", VGA, "0000:04:00.1")
        ],
    ),
    "no interrupt remapping": (
        {f"sys/class/iommu/dmar0/intel-iommu/{register}": "0" for register in ("cap", "ecap")},
        [
            f"{address} remapping: interrupts are not remapped: the VM could send any interrupt "
            "to the host [/sys/class/iommu/*/intel-iommu/ecap]"
            for address in (DISK, SPARE, NIC, VF, "0000:03:02.1", VGA, "0000:04:00.1")
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OBJECTIONS)
def test_an_objection_names_the_use_and_its_evidence(case: str, tmp_path: Path) -> None:
    """Each way in which a host needs a device, and that nothing else is objected to."""
    files, expected = OBJECTIONS[case]
    judged = list_devices(write_host(tmp_path, pci=HOST, files=files))
    objections = [
        f"{judgement.device.address} {objection.reason}: {objection}"
        for judgement in judged
        for objection in judgement.objections
    ]
    assert objections == expected


def own_objections(root: Path) -> set[tuple[str, str]]:
    """(address, reason) of what speaks against each device itself."""
    return {
        (str(device.device.address), objection.reason)
        for device in list_devices(root)
        for objection in device.objections
        if objection.reason != "group" and not device.is_given
    }


def the_hooks_own(root: Path) -> set[tuple[str, str]]:
    """The same by the hook's last look."""
    system = System(str(root))
    return {
        (str(device.device.address), reason)
        for device in list_devices(root)
        for reason, _ in uses_of(system, str(device.device.address))
    }


@pytest.mark.parametrize("case", OBJECTIONS)
def test_the_hook_refuses_what_is_objected_to(case: str, tmp_path: Path) -> None:
    """It has code of its own for it, which must say the same."""
    root = write_host(tmp_path, pci=HOST, files=OBJECTIONS[case][0])
    assert the_hooks_own(root) == own_objections(root)


def test_a_screen_that_is_on_is_its_displays(tmp_path: Path) -> None:
    """A connector that is driven speaks against its display."""
    root = write_host(
        tmp_path,
        pci=HOST,
        files={"sys/class/drm/card1-HDMI-A-1/enabled": "enabled", "sys/class/drm/card1/dev": "1"},
    )
    (root / "sys/class/drm/card1/device").symlink_to(f"../../../devices/pci0000:04/{VGA}")
    judged = {str(device.device.address): device for device in list_devices(root)}
    assert [str(each) for each in judged[VGA].objections] == [
        "card1 drives the screen at HDMI-A-1 [/sys/class/drm/card1-HDMI-A-1/enabled]"
    ]
    assert the_hooks_own(root) == own_objections(root) == {(VGA, "screen")}


def test_a_function_in_use_holds_its_card(tmp_path: Path) -> None:
    """A card whose virtual function is a VM's would take it away from it."""
    pci = [
        FakePci(**{**device.__dict__, "driver": "vfio-pci"}) if device.address == VF else device
        for device in HOST
    ]
    root = write_host(tmp_path, pci=pci)
    judged = {str(device.device.address): device for device in list_devices(root)}
    assert the_hooks_own(root) == own_objections(root) == {(NIC, "functions")}
    assert (judged[VF].verdict, judged[NIC].verdict) == ("given", "refused")
    assert [str(each) for each in judged[NIC].objections] == [
        f"its function {VF} is with vfio-pci, for a VM [/sys/bus/pci/devices/{VF}/driver]"
    ]


def test_what_a_person_should_know_is_noted(tmp_path: Path) -> None:
    """Resets, groups that reach over slots, and a patched kernel's promise."""
    pci = (
        FakePci("0000:05:00.0", iommu_group=1),
        FakePci("0000:05:01.0", iommu_group=1, reset="bus"),
    )
    root = write_host(tmp_path, pci=pci, cmdline="pcie_acs_override=downstream")
    patched = "pcie_acs_override is on the kernel's command line: groups say more than the hardware"
    assert [device.notes for device in list_devices(root)] == [
        (
            "is reset with its whole bus, so together with 0000:05:01.0",
            "shares group 1 with other slots: no ACS between them",
            f"{patched} keeps",
        ),
        (
            "is reset with its whole bus, so together with 0000:05:00.0",
            "shares group 1 with other slots: no ACS between them",
            f"{patched} keeps",
        ),
    ]


def test_the_verb_lists_and_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text for people, JSON for programs, and an address that is not there is an error."""
    root = str(write_host(tmp_path, pci=HOST, files=OBJECTIONS["a mounted partition"][0]))
    assert main(["devices", "--root", root, DISK, SPARE]) == 0
    assert capsys.readouterr().out == (
        "0000:01:00.0  refused 8086:1572  nvme  group 1  flr  nvme0n1\n"
        "    refused: nvme0n1p1 is mounted at /srv/my data [/proc/self/mountinfo]\n"
        "0000:02:00.0  free    8086:1572  nvme  group 2  flr  nvme1n1\n"
    )
    assert main(["devices", "--root", root, "--free", "--json"]) == 0
    free = [(entry["address"], entry["goes_with"]) for entry in json.loads(capsys.readouterr().out)]
    assert free == [
        (SPARE, []), (NIC, []), (VF, []), ("0000:03:02.1", []),
        (VGA, ["0000:04:00.1"]), ("0000:04:00.1", [VGA]),
    ]  # fmt: skip
    assert main(["devices", "--root", root, "0000:00:1c.0"]) == 1
    assert capsys.readouterr().err == (
        "0000:00:1c.0: no such device on this host, or it is a bridge\n"
    )
