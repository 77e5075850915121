"""This very machine: what we say against what libudev and lstopo say of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from kvmhooks.host import read
from kvmhooks.host.bus import pci, udev
from kvmhooks.host.files.tree import Tree
from kvmhooks.values import CpuSet

ROOT = Path(__file__).parents[3]


def test_libudev_and_the_files_agree() -> None:
    """Devices, drivers, groups, functions, interfaces and disks, whole."""
    assert list(udev.read_pci(Tree("/"))) == list(pci.read_pci_files(Tree("/")) or ())


def test_a_plan_pays_for_nothing_else() -> None:
    """Reading what a plan needs loads neither libudev nor the readers of other parts."""
    script = (
        "import sys; from kvmhooks.host import PLANNED, read; read('/', PLANNED);"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert "kvmhooks.host.system.kvm" in loaded
    others = (
        "bus.pci",
        "bus.udev",
        "bus.irqs",
        "system.resctrl",
        "system.cgroup",
        "cpu.power",
        "resources",
        "capture",
        "picture",
    )
    assert loaded.isdisjoint({f"kvmhooks.host.{name}" for name in others})
    assert loaded.isdisjoint({"pyudev", "tarfile", "lxml", "libvirt", "asyncio"})


@pytest.fixture(scope="module")
def lstopo() -> ET.Element:
    """Return what lstopo says of this machine."""
    program = shutil.which("lstopo-no-graphics")
    if program is None:
        pytest.skip("lstopo is not installed (hwloc-nox)")
    done = subprocess.run(
        [program, "--of", "xml", "--no-io", "--whole-system"], check=True, capture_output=True
    )
    return ET.fromstring(done.stdout)  # noqa: S314 -- of a program of this machine


def _sets(lstopo: ET.Element, kind: str) -> list[CpuSet]:
    masks = (
        each.attrib["cpuset"].replace("0x", "")
        for each in lstopo.iter("object")
        if each.attrib["type"] == kind
    )
    return sorted(map(CpuSet.parse_mask, masks), key=CpuSet.first)


def test_lstopo_sees_the_same_machine(lstopo: ET.Element) -> None:
    """CPUs, cores, packages, caches, and nodes with their memory."""
    host = read("/", {"cpus", "nodes"})
    cpus = [cpu for cpu in host.cpus or () if cpu.online]
    assert [cpu.id for cpu in cpus] == [pu.first() for pu in _sets(lstopo, "PU")]
    cores = {cpu.siblings for cpu in cpus if cpu.siblings}
    assert sorted(cores, key=CpuSet.first) == _sets(lstopo, "Core")
    for level in (2, 3):
        ours = [each.cpus for each in host.caches or () if each.level == level]
        assert ours == _sets(lstopo, f"L{level}Cache")
    nodes = {
        int(each.attrib["os_index"]): CpuSet.parse_mask(each.attrib["cpuset"].replace("0x", ""))
        for each in lstopo.iter("object")
        if each.attrib["type"] == "NUMANode"
    }
    assert {node.id: node.cpus for node in host.nodes or ()} == nodes
