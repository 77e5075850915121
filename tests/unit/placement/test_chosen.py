"""Devices that are named by something else than their address."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.errors import PlanError
from kvmhooks.host import Host, read
from kvmhooks.placement import plan
from kvmhooks.placement.holding import Holding, of_plan
from kvmhooks.render import domain_xml, qemu_argv
from kvmhooks.spec import VmSpec, parse_vm
from tests.fakedevices import FakePci
from tests.fakehost import write_host

NIC, DISK, GPU, SOUND, PORT, OTHER = (
    "0000:03:00.0", "0000:04:00.0", "0000:05:00.0", "0000:05:00.1", "0000:00:1c.0", "0000:06:00.0",
)  # fmt: skip
DEVICES = (
    FakePci(NIC, driver="i40e", iommu_group=3, net=("enp3s0",)),
    FakePci(DISK, class_="0x010802", device="0xa808", iommu_group=4, block=("nvme1n1",)),
    FakePci(GPU, class_="0x030000", vendor="0x10de", device="0x2204", iommu_group=5),
    FakePci(SOUND, class_="0x040300", vendor="0x10de", device="0x1aef", iommu_group=5),
    FakePci(PORT, class_="0x060400", vendor="0x8086", device="0xa340", iommu_group=5),
    FakePci(OTHER, class_="0x030000", vendor="0x10de", device="0x2204", iommu_group=6),
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with a network card, a disk's controller and two graphics cards."""
    return read(write_host(tmp_path_factory.mktemp("host"), cores=4, pci=DEVICES))


def spec(*tables: str, name: str = "vm") -> VmSpec:
    """A VM with these devices."""
    head = f'name = "{name}"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'
    return parse_vm("\n".join([head, *(f"[[pci]]\n{one}" for one in tables)]), folder=Path("/"))


def chosen(host: Host, *tables: str, beside: tuple[Holding, ...] = ()) -> list[str]:
    """The addresses that a plan has."""
    return [str(place.address) for place in plan(spec(*tables), host, beside).pci]


NVIDIA = 'id = "10de:2204"'
HERE = "expected a PCI device of this host"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('net = "enp3s0"', [NIC]),
        ('block = "nvme1n1"', [DISK]),
        (NVIDIA, [GPU]),
        (f"{NVIDIA}\nindex = 1", [OTHER]),
        ("iommu_group = 5", [GPU, SOUND]),
    ],
)
def test_a_device_has_more_than_one_name(host: Host, table: str, expected: list[str]) -> None:
    """Each leads to the addresses, which are in the plan and in what is made of it."""
    assert chosen(host, table) == expected
    decided = plan(spec(table), host)
    assert [str(device.address) for device in decided.spec.pci] == expected
    assert plan(decided.spec, host) == decided
    argv = " ".join(qemu_argv(decided))
    for address in expected:
        assert f'"host":"{address}"' in argv or f"host={address}" in argv
    assert domain_xml(decided).count("<hostdev ") == len(expected)


def test_the_first_that_is_free_is_meant(host: Host) -> None:
    """Beside another VM, and beside another table of the same VM."""
    first = of_plan(plan(spec(NVIDIA, name="first"), host))
    assert chosen(host, NVIDIA, beside=(first,)) == [OTHER]
    assert chosen(host, NVIDIA, NVIDIA) == [GPU, OTHER]
    assert chosen(host, NVIDIA, f'address = "{GPU}"') == [OTHER, GPU]
    with pytest.raises(PlanError, match=r"pci\[1\]\.id: .* have all 2, expected one that is free"):
        chosen(host, NVIDIA, NVIDIA, beside=(first,))


IDS = "10de:1aef, 10de:2204, 8086:1572, 8086:a808"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('net = "enp9s0"', f'net: found "enp9s0", {HERE}: enp3s0'),
        ('block = "sda"', f'block: found "sda", {HERE}: nvme1n1'),
        ('id = "10de:0000"', f'id: found "10de:0000", expected a device of this host: {IDS}'),
        (
            f"{NVIDIA}\nindex = 2",
            "index: found 2, and 2 of 10de:2204, expected one of them, counted from 0 by address",
        ),
        ("iommu_group = 9", "iommu_group: found 9, expected a group with a device: 3, 4, 5, 6"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(host: Host, table: str, said: str) -> None:
    """With the key, and the names that there are."""
    with pytest.raises(PlanError) as caught:
        plan(spec(table), host)
    assert str(caught.value) == f"pci[0].{said}"
