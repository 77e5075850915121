"""Devices and interrupts: what is described is what is read, whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmhooks.host import read, to_json
from kvmhooks.host.bus.devices import Irq, PciDevice, Sriov
from kvmhooks.host.bus.irqs import Counted, parse_counts
from kvmhooks.host.bus.managed_irqs import is_likely_managed
from kvmhooks.host.resources import Iommu
from kvmhooks.values import CpuSet, PciAddress
from tests.fakedevices import PCI, FakeIrq, FakePci, nic_with_functions
from tests.fakehost import write_host

if TYPE_CHECKING:
    from pathlib import Path

    from kvmhooks.host import Host

NIC, VF0, VF1 = map(PciAddress.parse, ("0000:3b:00.0", "0000:3b:02.0", "0000:3b:02.1"))
DISK, VGA, AUDIO = map(PciAddress.parse, ("0000:5e:00.0", "0000:65:00.0", "0000:65:00.1"))

DESCRIBED = (
    *nic_with_functions(str(NIC), 2, total=64, node=0, group=7),
    FakePci(
        str(DISK),
        class_="0x010802",
        vendor="0x144d",
        device="0xa80a",
        node=1,
        driver="nvme",
        block=("nvme0n1",),
    ),
    FakePci(str(VGA), class_="0x030000", iommu_group=20, boot_vga=True, reset="bus"),
    FakePci(str(AUDIO), class_="0x040300", iommu_group=20),
)


def _device(address: PciAddress, **attributes: object) -> PciDevice:
    ids = {"class_": "0x020000", "vendor": "0x8086", "device": "0x1572", "can_reset": False}
    return PciDevice(address=address, **{**ids, **attributes})  # type: ignore[arg-type]


EXPECTED = (
    _device(
        NIC,
        driver="i40e",
        node=0,
        iommu_group=7,
        sriov=Sriov(total_vfs=64, num_vfs=2, vfs=(VF0, VF1)),
        reset_methods=("flr", "bus"),
        can_reset=True,
        net=("ens7",),
    ),
    *(
        _device(
            address,
            device="0x154c",
            driver="iavf",
            node=0,
            iommu_group=group,
            physfn=NIC,
            reset_methods=("flr",),
            can_reset=True,
        )
        for address, group in ((VF0, 8), (VF1, 9))
    ),
    _device(
        DISK,
        class_="0x010802",
        vendor="0x144d",
        device="0xa80a",
        driver="nvme",
        node=1,
        block=("nvme0n1",),
    ),
    _device(
        VGA,
        class_="0x030000",
        iommu_group=20,
        iommu_group_members=(AUDIO,),
        boot_vga=True,
        reset_methods=("bus",),
        can_reset=True,
    ),
    _device(AUDIO, class_="0x040300", iommu_group=20, iommu_group_members=(VGA,)),
)


def test_everything_of_every_device_is_read(tmp_path: Path) -> None:
    """A card with functions, a disk, a display that shares its group with its sound."""
    assert read(write_host(tmp_path, pci=DESCRIBED), {"pci"}).pci == EXPECTED


def test_the_json_of_a_device_has_the_names_of_the_contract(tmp_path: Path) -> None:
    """Addresses are text, «class» is no Python word."""
    document = to_json(read(write_host(tmp_path, pci=DESCRIBED), {"pci"}))["pci"][0]
    assert document == {
        "address": "0000:3b:00.0",
        "class": "0x020000",
        "vendor": "0x8086",
        "device": "0x1572",
        "driver": "i40e",
        "node": 0,
        "iommu_group": 7,
        "iommu_group_members": [],
        "physfn": None,
        "sriov": {
            "total_vfs": 64,
            "num_vfs": 2,
            "vfs": ["0000:3b:02.0", "0000:3b:02.1"],
            "vf_device": None,
            "offset": None,
            "stride": None,
        },
        "mdev_types": [],
        "bars": [],
        "reset_methods": ["flr", "bus"],
        "can_reset": True,
        "boot_vga": None,
        "net": ["ens7"],
        "block": [],
    }


def test_groups_and_units_of_the_iommu_are_read(tmp_path: Path) -> None:
    """VT-d says by its registers whether it remaps and posts interrupts."""
    unit = "sys/class/iommu/dmar0/intel-iommu"
    files = {f"{unit}/cap": "8d2008c40660462", f"{unit}/ecap": "f050df"}
    assert read(write_host(tmp_path, pci=DESCRIBED, files=files), {"iommu"}).iommu == Iommu(
        units=("dmar0",),
        groups={7: (NIC,), 8: (VF0,), 9: (VF1,), 20: (VGA, AUDIO)},
        interrupt_remapping=True,
        posted_interrupts=True,
    )


@pytest.mark.parametrize(
    ("file", "content", "warning"),
    [
        ("numa_node", "near", "found 'near', expected a whole number"),
        ("class", "display", "found 'display', expected a number such as 0x8086"),
        ("sriov_numvfs", "3", "says 3, but 2 functions are linked"),
    ],
)
def test_a_damaged_file_of_a_device_is_said(
    tmp_path: Path, file: str, content: str, warning: str
) -> None:
    """Null and a warning; the rest of the device is known."""
    root = write_host(tmp_path, pci=DESCRIBED)
    (root / f"{PCI}/{NIC}/{file}").write_text(f"{content}\n")
    host = read(root, {"pci"})
    assert host.warnings == (f"/{PCI}/{NIC}/{file}: {warning}",)
    assert (host.pci or ())[1:] == EXPECTED[1:]


@pytest.mark.parametrize("name", ["0000:00:ff.0", "slot", "0000:00:00.8", "0000:00:00"])
def test_what_is_no_address_is_no_device(tmp_path: Path, name: str) -> None:
    """Names in a tree are checked before they are taken for addresses."""
    root = write_host(tmp_path, pci=DESCRIBED)
    (root / PCI / name).mkdir()
    (root / f"sys/kernel/iommu_groups/7/devices/{name}").mkdir()
    assert read(root, {"pci", "irqs", "iommu"}) == read(
        write_host(tmp_path / "plain", pci=DESCRIBED), {"pci", "irqs", "iommu"}
    )


def test_a_host_without_pci_has_none(tmp_path: Path) -> None:
    """Null: not an empty list, which would say that there is a bus with nothing on it."""
    assert read(write_host(tmp_path), {"pci"}).pci is None


IRQS = (
    FakeIrq(9, "acpi", "IO-APIC", affinity="0-3", effective="0", node=-1, counts={0: 12}),
    FakeIrq(64, "nvme0q1", affinity="1", effective="1", device=str(DISK), counts={1: 5, 3: 6}),
    FakeIrq(65, "i40e-ens7-TxRx-0", "PCI-MSIX-0000:3b:00.0", affinity="0-3", effective="2"),
)


def _read_irqs(tmp_path: Path) -> Host:
    return read(write_host(tmp_path, cores=4, pci=DESCRIBED, irqs=IRQS), {"irqs"})


def test_everything_of_every_interrupt_is_read(tmp_path: Path) -> None:
    """One of the board, one of a device that lists it, one whose chip names its device."""
    assert _read_irqs(tmp_path).irqs == (
        Irq(
            number=9,
            actions=("acpi",),
            chip="IO-APIC",
            affinity=CpuSet({0, 1, 2, 3}),
            effective_affinity=CpuSet({0}),
            hwirq=1009,
            likely_managed=False,
            count=12,
            counted_on=CpuSet({0}),
        ),
        Irq(
            number=64,
            actions=("nvme0q1",),
            chip="PCI-MSI",
            affinity=CpuSet({1}),
            effective_affinity=CpuSet({1}),
            node=0,
            device=DISK,
            hwirq=1064,
            likely_managed=True,
            count=11,
            counted_on=CpuSet({1, 3}),
        ),
        Irq(
            number=65,
            actions=("i40e-ens7-TxRx-0",),
            chip="PCI-MSIX-0000:3b:00.0",
            affinity=CpuSet({0, 1, 2, 3}),
            effective_affinity=CpuSet({2}),
            node=0,
            device=NIC,
            hwirq=1065,
            likely_managed=False,
            count=0,
            counted_on=CpuSet(),
        ),
    )


def test_counts_belong_to_the_cpus_that_the_head_names() -> None:
    """Only CPUs that are online have a column; lines of other kinds and short lines are no news."""
    lines = [
        "            CPU0       CPU2",
        "   0:         30          0   IO-APIC   2-edge      timer",
        "  24:          0          7   PCI-MSI 1-edge      nvme0q1",
        " NMI:          1          1   Non-maskable interrupts",
        " ERR:          3",
        "  25:          1",
    ]
    assert dict(parse_counts(iter(lines))) == {
        0: Counted(30, CpuSet({0})),
        24: Counted(7, CpuSet({2})),
    }
    assert dict(parse_counts(iter([]))) == {}


@pytest.mark.parametrize(
    ("actions", "state", "managed"),
    [
        (("nvme0q1",), None, True),
        (("nvme0q0",), None, False),
        (("virtio1-req.0",), None, True),
        (("virtio1-config",), None, False),
        (("eth0",), "dstate: IRQD_AFFINITY_MANAGED", True),
        (("nvme0q1",), "dstate: IRQD_ACTIVATED", False),
        ((), None, None),
        (None, None, None),
    ],
)
def test_managed_interrupts_are_told_by_debugfs_or_by_their_name(
    actions: tuple[str, ...] | None, state: str | None, *, managed: bool | None
) -> None:
    """debugfs knows; the name only makes it likely; without either it is not known."""
    assert is_likely_managed(actions, state) is managed
