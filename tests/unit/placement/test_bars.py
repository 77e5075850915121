"""Devices whose BARs are larger than a firmware may have room for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.host import Host, read
from kvmhooks.placement import plan
from kvmhooks.spec import parse_vm
from tests.fakedevices import FakePci
from tests.fakehost import write_host

GPU, NIC = "0000:65:00.0", "0000:3b:00.0"
GIB = 1 << 30

RESOURCES = f"""\
0x00000000e0000000 0x00000000e0ffffff 0x0000000000040200
0x{64 * GIB:016x} 0x{64 * GIB + 32 * GIB - 1:016x} 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000e000 0x000000000000e07f 0x0000000000040101
0x00000000e1000000 0x00000000e107ffff 0x0000000000046200
"""
"""A BAR of 16 MiB, one of 32 GiB, one of ports; the seventh is its option ROM."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A GPU with resizable BARs, made as large as they go, and a card."""
    root = tmp_path_factory.mktemp("host")
    pci = [
        FakePci(GPU, class_="0x030000", iommu_group=5, reset="flr"),
        FakePci(NIC, iommu_group=6, reset="flr"),
    ]
    write_host(root, cores=4, pci=pci)
    for address in (GPU, NIC):
        (root / "sys/bus/pci/devices" / address / "resource").write_text(RESOURCES)
    return read(root)


def warnings(host: Host, address: str, firmware: str) -> list[str]:
    """Return what a plan warns of the device."""
    boot = "{firmware = 'uefi', variables = 'a.fd'}" if firmware == "uefi" else "{}"
    text = f"""
        name = "a"
        cpu.vcpus = 1
        memory.size = "1GiB"
        boot = {boot}
        pci = [{{ address = "{address}" }}]
    """
    return [
        warning
        for warning in plan(parse_vm(text, folder=Path("/")), host).warnings
        if "BAR" in warning
    ]


def test_only_a_displays_bars_are_read(host: Host) -> None:
    """Those of memory, without the ROM."""
    bars = {str(device.address): device.bars for device in host.pci or ()}
    assert bars == {GPU: (16 << 20, 32 * GIB), NIC: ()}


def test_a_firmware_that_may_have_no_room_is_told_of(host: Host) -> None:
    """With the device, and the switch that nobody sets in silence; SeaBIOS sizes its window."""
    assert warnings(host, GPU, "bios") == []
    assert warnings(host, NIC, "uefi") == []
    (warning,) = warnings(host, GPU, "uefi")
    assert warning.startswith(f"pci: memory BARs of 32 GiB, {GPU} the most of them: an OVMF")
    assert "X-PciMmio64Mb is not set" in warning
