"""Laws of judging devices, over random machines."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmhooks.devices import Use, Uses, judge
from kvmhooks.host.bus.devices import PciDevice, Sriov
from kvmhooks.host.model import Host
from kvmhooks.host.resources import Iommu
from kvmhooks.values import PciAddress

GROUP_WIDE = {"no-iommu", "remapping"}


@st.composite
def machines(draw: st.DrawFn) -> tuple[Host, Uses]:
    """Up to twelve functions in up to four groups, some with disks, networks and functions."""
    count = draw(st.integers(1, 12))
    addresses = [PciAddress(0, 1 + at // 4, at % 4, 0) for at in range(count)]
    groups = draw(st.lists(st.none() | st.integers(0, 3), min_size=count, max_size=count))
    has = st.booleans()
    devices = []
    for at, (address, group) in enumerate(zip(addresses, groups, strict=True)):
        fellows = [
            other for other, its in zip(addresses, groups, strict=True) if its == group is not None
        ]
        devices.append(
            PciDevice(
                address=address,
                class_=draw(st.sampled_from(["0x060400", "0x020000", "0x010802", "0x030000"])),
                driver=draw(st.sampled_from([None, "nvme", "vfio-pci"])),
                iommu_group=group,
                iommu_group_members=tuple(other for other in fellows if other != address),
                sriov=Sriov(8, 1, (addresses[-1],)) if at < count - 1 and draw(has) else None,
                boot_vga=draw(st.none() | st.booleans()),
                net=(f"eth{at}",) if draw(has) else (),
                block=(f"nvme{at}n1",) if draw(has) else (),
            )
        )
    used = st.sets(st.integers(0, count - 1))
    uses = Uses(
        disks={
            f"nvme{at}n1": (Use("mounted", f"nvme{at}n1", "is mounted at /", "mountinfo"),)
            for at in draw(used)
        },
        networks={f"eth{at}": (Use("route", f"eth{at}", "is", "route"),) for at in draw(used)},
        displays={},
        boot_display=draw(st.sampled_from([(), (Use("console", "vtcon1", "is", "bind"),)])),
    )
    remapping = draw(st.none() | st.booleans())
    return Host(pci=tuple(devices), iommu=Iommu(interrupt_remapping=remapping)), uses


@settings(max_examples=300)
@given(machines())
def test_nothing_the_host_uses_is_free(machine: tuple[Host, Uses]) -> None:
    """Every device is judged once but bridges; a free one takes nothing along that is in use."""
    host, uses = machine
    judged = {judgement.device.address: judgement for judgement in judge(host, uses)}
    devices = {device.address: device for device in host.pci or ()}
    bridges = {
        address for address, device in devices.items() if str(device.class_).startswith("0x06")
    }
    assert judged.keys() == devices.keys() - bridges
    for address, judgement in judged.items():
        assert set(judgement.goes_with) == set(judgement.device.iommu_group_members) - bridges
        assert all(address in judged[other].goes_with for other in judgement.goes_with)
        if judgement.verdict != "free":
            continue
        assert judgement.device.iommu_group is not None
        for member in (address, *judgement.goes_with):
            device = devices[member]
            assert not uses.disks.keys() & set(device.block)
            assert not uses.networks.keys() & set(device.net)
            assert not (device.boot_vga and uses.boot_display)
            for function in device.sriov.vfs if device.sriov else ():
                assert devices[function].driver != "vfio-pci" or function in bridges


@settings(max_examples=100)
@given(machines())
def test_an_objection_is_shared_by_its_group(machine: tuple[Host, Uses]) -> None:
    """An objection against one member is told at each other one, and named with it."""
    judged = {judgement.device.address: judgement for judgement in judge(*machine)}
    for address, judgement in judged.items():
        own = [each for each in judgement.objections if each.reason not in {"group", *GROUP_WIDE}]
        for other in judgement.goes_with:
            told = [each for each in judged[other].objections if each.what.startswith(str(address))]
            assert [each.evidence for each in told] == [each.evidence for each in own]
