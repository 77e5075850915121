"""The device that a mediated one is made of."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from attrs import evolve

from kvmhooks.devices import Uses, judge
from kvmhooks.errors import PlanError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.host.bus.devices import MdevType
from kvmhooks.isolate.kinds.mdevs import MdevDemand
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import claim, plan
from kvmhooks.placement.plan import identity_of
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec import VmSpec, parse_vm
from tests.fakedevices import FakePci
from tests.fakehost import write_host

A, B = "0000:3b:00.0", "0000:5e:00.0"
OWN = "c0d5a2b0-0000-4000-8000-000000000001"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Two cards that can be divided, one of them on each node."""
    root = tmp_path_factory.mktemp("host")
    pci = [FakePci(A, iommu_group=5, node=0), FakePci(B, iommu_group=6, node=1)]
    write_host(root, cores=8, nodes=2, pci=pci)
    types = {A: (("nvidia-35", 1), ("nvidia-38", 1)), B: (("nvidia-35", 4),)}
    for address, kinds in types.items():
        for name, available in kinds:
            folder = root / "sys/bus/pci/devices" / address / "mdev_supported_types" / name
            folder.mkdir(parents=True)
            (folder / "available_instances").write_text(f"{available}\n")
    return read(root)


def spec(*tables: str) -> VmSpec:
    """A VM with mediated devices."""
    text = 'name = "a"\nmemory.size = "1GiB"\ncpu.vcpus = 1\n'
    return parse_vm(text + "".join(f"[[mdev]]\n{table}\n" for table in tables), folder=Path("/"))


def test_types_are_read(host: Host) -> None:
    """With how many more there can be."""
    assert {str(device.address): device.mdev_types for device in host.pci or ()} == {
        A: (MdevType("nvidia-35", 1), MdevType("nvidia-38", 1)),
        B: (MdevType("nvidia-35", 4),),
    }


def test_a_person_is_told_of_types(host: Host) -> None:
    """`kvmhooks devices` tells of them."""
    notes = {
        str(judgement.device.address): judgement.notes
        for judgement in judge(host, Uses({}, {}, {}, ()))
    }
    message = "can be divided into mediated devices: nvidia-35 (1 more), nvidia-38 (1 more)"
    assert message in notes[A]
    assert "can be divided into mediated devices: nvidia-35 (4 more)" in notes[B]


def test_the_device_that_can_make_the_most_is_taken(host: Host) -> None:
    """UUIDs follow from the VM's; the claim has both, and both renderings the UUID."""
    vm = spec('type = "nvidia-35"', f'uuid = "{OWN}"', f'type = "nvidia-35"\nparent = "{A}"')
    made = plan(vm, host)
    derived = [str(uuid.uuid5(uuid.UUID(identity_of(vm)), f"mdev{at}")) for at in range(3)]
    chosen = [(mdev.uuid, mdev.parent and str(mdev.parent)) for mdev in made.spec.mdev]
    assert chosen == [(derived[0], B), (OWN, None), (derived[2], A)]
    for driver in ("kvm-launch", "qemu"):
        assert claim(made, driver=driver).of(MdevDemand) == (
            MdevDemand(derived[0], B, "nvidia-35"),
            MdevDemand(derived[2], A, "nvidia-35"),
        )
    assert f"{derived[0]}={B}/nvidia-35,{derived[2]}={A}/nvidia-35" in domain_xml(made)
    for each in (derived[0], OWN, derived[2]):
        assert f"uuid='{each}'" in domain_xml(made).replace('"', "'")
        assert any(f"/sys/bus/mdev/devices/{each}" in word for word in qemu_argv(made))


def test_several_are_spread_as_far_as_they_go(host: Host) -> None:
    """The mediated devices that the VM has already count."""
    made = plan(spec(*['type = "nvidia-35"'] * 5), host)
    assert [str(mdev.parent) for mdev in made.spec.mdev].count(B) == 4


def test_the_vm_goes_where_its_device_is(host: Host) -> None:
    """It is so as with a device of its own."""
    vm = spec('type = "nvidia-35"')
    dedicated = evolve(vm, cpu=evolve(vm.cpu, placement="dedicated"))
    assert [cell.node for cell in plan(dedicated, host).cells] == [1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            'type = "nvidia-99"',
            'found "nvidia-99", expected a type that this host can make: nvidia-35, nvidia-38',
        ),
        (
            f'type = "nvidia-38"\nparent = "{B}"',
            f'found "nvidia-38", expected a type that {B} can make: nvidia-35',
        ),
        (
            'type = "nvidia-35"\nparent = "0000:01:00.0"',
            'found "nvidia-35", expected a type that 0000:01:00.0 can make: it has none',
        ),
    ],
)
def test_a_type_that_nothing_makes_is_refused(host: Host, table: str, message: str) -> None:
    """With those that there are."""
    with pytest.raises(PlanError) as caught:
        plan(spec(table), host)
    assert f"mdev[0].type: {message}" in str(caught.value)


def test_what_is_said_by_halves_is_refused() -> None:
    """Neither UUID nor type, or a parent of nothing."""
    with pytest.raises(SpecError) as caught:
        spec("display = false", f'uuid = "{OWN}"\nparent = "{A}"')
    assert [str(problem) for problem in caught.value.problems] == [
        f"mdev[1].parent: found '{A}', expected mdev[1].type beside it",
        "mdev[0]: found neither uuid nor type, expected one of them",
    ]
