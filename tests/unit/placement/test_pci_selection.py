"""Devices that are named by something else than their address."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvmhooks.errors import PlanError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.kinds.vf_pools import VfPoolDemand
from kvmhooks.isolate.kinds.vf_powers import VfSettingsDemand
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import claim, plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.qemu.argv import qemu_argv
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
    return parse_vm("\n".join([head, *(f"[[pci]]\n{table}" for table in tables)]), folder=Path("/"))


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


CARD = "0000:3b:00.0"


@cache
def card_host(present: int, *, offset: int | None = 0x80, driver: str | None = None) -> Host:
    """A host whose card may have 300 functions, which reach into the next bus, and has some."""
    vfs = tuple(f"0000:3b:10.{at}" for at in range(present))
    card = FakePci(
        CARD, driver="ice", iommu_group=1, node=0, total_vfs=300, vfs=vfs, offset=offset, stride=1,
        net=("ens9",),
    )  # fmt: skip
    functions = [
        FakePci(vf, driver=driver if at == 0 else None, iommu_group=2 + at, physfn=CARD)
        for at, vf in enumerate(vfs)
    ]
    with TemporaryDirectory() as folder:
        return read(write_host(Path(folder), cores=4, pci=(card, *functions)))


def sriov(text: str) -> str:
    """A table with a function of the card."""
    return f'sriov = {{ pf = "ens9", {text} }}'


@pytest.mark.parametrize(
    ("present", "tables", "expected", "pools"),
    [
        (0, ["vf = 'auto'"], ["0000:3b:10.0"], 1),
        (0, ["vf = 'auto'", "vf = 'auto'"], ["0000:3b:10.0", "0000:3b:10.1"], 2),
        (0, ["vf = 2"], ["0000:3b:10.2"], 3),
        (0, ["vf = 'auto', pool = 8"], ["0000:3b:10.0"], 8),
        (0, ["vf = 140"], ["0000:3c:01.4"], 141),
        (4, ["vf = 'auto'", "vf = 3"], ["0000:3b:10.0", "0000:3b:10.3"], 4),
    ],
)
def test_a_function_has_its_address_before_it_is_made(
    present: int, tables: list[str], expected: list[str], pools: int
) -> None:
    """And the claim says how many the card has to have."""
    host = card_host(present)
    decided = plan(spec(*map(sriov, tables)), host)
    assert [str(place.address) for place in decided.pci] == expected
    asked = claim(decided)
    assert asked.of(VfPoolDemand) == (VfPoolDemand(CARD, pools),)
    assert asked.asks_of("functions") == tuple(expected)
    assert plan(decided.spec, host) == decided


def test_under_libvirt_the_hook_makes_and_binds_it() -> None:
    """The XML says so; libvirt would give it to the host's driver, and the pool could not go."""
    decided = plan(spec(sriov("vf = 0, pool = 4"), f'address = "{CARD}"'), card_host(0))
    xml = domain_xml(decided)
    assert 'pools="0000:3b:00.0=4"' in xml
    theirs = claim(decided, driver="qemu")
    assert theirs.of(VfPoolDemand) == (VfPoolDemand(CARD, 4),)
    assert theirs.asks_of("functions") == ("0000:3b:10.0",)
    assert read_claim(xml) == theirs


def test_what_a_function_may_do_is_in_the_claim_and_in_the_xml() -> None:
    """By the card's address and the function's number, whatever they were named by."""
    asked = "vf = 1, mac = '52:54:00:12:34:56', vlan = 5, trust = true, spoofchk = false, rate = 9"
    decided = plan(
        spec(sriov(asked), sriov("vf = 'auto'"), sriov("vf = 2, vlan = 7")), card_host(4)
    )
    words = {"mac": "52:54:00:12:34:56", "vlan": "5", "trust": "yes", "spoofchk": "no", "rate": "9"}
    assert claim(decided).of(VfSettingsDemand) == (
        VfSettingsDemand(CARD, 1, words),
        VfSettingsDemand(CARD, 2, {"vlan": "7"}),
    )
    assert read_claim(domain_xml(decided)) == claim(decided, driver="qemu")


def test_functions_that_may_be_in_use_come_last() -> None:
    """One without a driver, then one of the host's, then one that waits for a VM."""
    assert chosen(card_host(2, driver="iavf"), sriov("vf = 'auto'")) == ["0000:3b:10.1"]
    tables = [sriov("vf = 'auto'")] * 3
    assert chosen(card_host(3, driver="vfio-pci"), *tables) == [
        "0000:3b:10.1", "0000:3b:10.2", "0000:3b:10.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("present", "table", "message"),
    [
        (0, "vf = 300", f"vf: found 300, expected what {CARD} has: at most 300"),
        (0, "pool = 301", f"pool: found 301, expected what {CARD} has: at most 300"),
        (2, "vf = 2", f"vf: found 2, expected what {CARD} has: a pool of 2, which cannot grow"),
        (2, "pool = 3", f"pool: found 3, expected what {CARD} has: a pool of 2, which cannot grow"),
    ],
)
def test_a_function_that_cannot_be_had_is_told(present: int, table: str, message: str) -> None:
    """With the card and why."""
    with pytest.raises(PlanError) as caught:
        plan(spec(sriov(table)), card_host(present))
    assert str(caught.value) == f"pci[0].sriov.{message}"


def test_a_card_without_a_free_function_or_without_any_is_told() -> None:
    """With what to say, or the cards that there are."""
    host = card_host(1)
    with pytest.raises(PlanError, match=r"pci\[1\]\.sriov\.vf: found none of 1 that is free"):
        plan(spec(sriov("vf = 0"), sriov("vf = 'auto'")), host)
    with pytest.raises(PlanError, match=rf"that has virtual functions: {CARD}/ens9"):
        plan(spec('sriov.pf = "ens8"'), host)
    with pytest.raises(PlanError, match="expected a kernel that tells where functions will be"):
        plan(spec(sriov("vf = 0")), card_host(0, offset=None))


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
    ("table", "message"),
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
def test_what_is_not_there_is_told_with_what_is(host: Host, table: str, message: str) -> None:
    """With the key, and the names that there are."""
    with pytest.raises(PlanError) as caught:
        plan(spec(table), host)
    assert str(caught.value) == f"pci[0].{message}"


TWICE = [
    ("[[nvme]]\naddress = '0000:04:00.0'", "nvme[0].address"),
    ("[[net]]\ntype = 'hostdev'\naddress = '0000:04:00.0'", "net[0].address"),
    ("[[pci]]\naddress = '0000:04:00.0'", "pci[1].address"),
]
"""Tables that name the function of the first one, and where that is told."""


@pytest.mark.parametrize(("table", "at"), TWICE)
def test_a_function_that_two_tables_name_is_refused(table: str, at: str) -> None:
    """The second one is told, with the first, in any tables."""
    with pytest.raises(SpecError) as caught:
        spec(f"address = '{DISK}'\n{table}")
    expected = f"{at}: found {DISK}, expected each device once: pci[0].address names it"
    assert str(caught.value) == f"vm.toml: {expected}"


def test_a_function_that_two_tables_name_differently_is_refused(host: Host) -> None:
    """A name becomes an address in the plan only, and then is the same."""
    given = spec(f"block = 'nvme1n1'\n[[nvme]]\naddress = '{DISK}'")
    with pytest.raises(PlanError) as caught:
        plan(given, host)
    expected = (
        f"nvme[0].address: found {DISK}, expected each device once: pci[0].address is the same"
    )
    assert str(caught.value) == expected


@pytest.mark.parametrize(("table", "at"), TWICE)
def test_a_function_is_one_vms_whatever_the_table(host: Host, table: str, at: str) -> None:
    """Another VM cannot have it by another table."""
    text = 'name = "other"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'
    other = parse_vm(f"{text}{table}", folder=Path("/"))
    first = plan(spec(f"address = '{DISK}'"), host)
    place = at.replace("pci[1]", "pci[0]")
    with pytest.raises(PlanError) as caught:
        plan(other, host, [of_plan(first)])
    assert (
        str(caught.value) == f"{place}: found {DISK}, which vm has, expected a device that is free"
    )
    with pytest.raises(PlanError, match="which other has"):
        plan(spec(f"address = '{DISK}'"), host, [of_plan(plan(other, host))])
