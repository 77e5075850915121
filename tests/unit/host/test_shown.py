"""A host for a person: the text whole, the drawing by its geometry."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from kvmhooks.host import Host, read
from kvmhooks.host.drawing import draw
from kvmhooks.host.nesting import CpuPlace, nest
from kvmhooks.host.picture import picture
from kvmhooks.values import CpuSet
from tests.fakedevices import FakeIrq, FakePci, nic_with_functions
from tests.fakehost import write_host

if TYPE_CHECKING:
    from pathlib import Path

PICTURE = """\
Xeon, Linux 6.1.0-18-amd64
1 package, 3 nodes, 4 cores, 7 CPUs, 12 GiB of memory
offline:   7
isolated:  2-3
KVM:       usable (intel), nested, IOMMU, SR-IOV
cgroups:   v2 unified, systemd

node 0: 4 GiB, 1 GiB free, distances 10 20 20
  huge pages   2 MiB: 5 of 16 free
  L3 16 MiB    2 cores: 0,4  1,5
  0000:3b:00.0 network     i40e          ens7  IOMMU group 7  2 of 64 VFs
  interrupts   2 arrive here, 1 of them likely managed; 11 so far

node 1: 4 GiB, 1 GiB free, distances 20 10 20
  huge pages   2 MiB: 5 of 16 free
  L3 16 MiB    2 cores: 2,6  3

node 2: 4 GiB, 1 GiB free, distances 20 20 10
  huge pages   2 MiB: 5 of 16 free
  no CPUs: memory only

devices without a node
  0000:65:00.0 display     no driver     IOMMU group 20 with 1 other  boot display
  0000:65:00.1 multimedia  no driver     IOMMU group 20 with 1 other

warnings
  /proc/cmdline: nohz_full=x is no list of CPUs
"""


@pytest.fixture
def shown(tmp_path: Path) -> Host:
    root = write_host(
        tmp_path,
        cores=4,
        threads=2,
        nodes=2,
        node_ids=(0, 1, 2),
        free_mib=1024,
        hugepages={2048: (16, 5)},
        offline="7",
        isolated="2-3",
        cmdline="nohz_full=x",
        pci=(
            *nic_with_functions("0000:3b:00.0", 2, total=64, node=0, group=7),
            FakePci("0000:65:00.0", class_="0x030000", iommu_group=20, boot_vga=True),
            FakePci("0000:65:00.1", class_="0x040300", iommu_group=20),
            FakePci("0000:00:00.0", class_="0x060000"),
        ),
        irqs=(
            FakeIrq(9, "acpi", counts={0: 4}),
            FakeIrq(64, "nvme0q1", effective="1", counts={1: 7}),
            FakeIrq(65, ""),
        ),
        files={
            "proc/cpuinfo": "model name : Xeon",
            "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
            "run/systemd/system/x": "",
        },
    )
    return read(root)


def test_the_picture_of_a_host(shown: Host) -> None:
    """The host comes first, then a table for each node, what belongs to none, and its flaws."""
    assert picture(shown) == PICTURE


def test_a_picture_of_what_is_not_known() -> None:
    """A host of which nothing was read is no reason to fail."""
    assert picture(Host()) == (
        "a host\n0 packages, no NUMA, 0 cores, 0 CPUs\nKVM:       not known\n"
    )


def test_places_are_inside_each_other(tmp_path: Path) -> None:
    """A package holds two nodes, each an L3, each two cores."""
    host = read(write_host(tmp_path, cores=4, nodes=2, l3_cores=2), {"cpus", "nodes"})
    assert _outline(nest(host, ("package", "node", "l3", "core"))) == [
        "machine 0-3",
        " package 0 0-3",
        "  node 0 0-1",
        "   L3 16 MiB 0-1",
        "    core 0 0",
        "    core 1 1",
        "  node 1 2-3",
        "   L3 16 MiB 2-3",
        "    core 2 2",
        "    core 3 3",
    ]


def _outline(place: CpuPlace, depth: int = 0) -> list[str]:
    inner = (line for each in place.inside for line in _outline(each, depth + 1))
    return [f"{' ' * depth}{place.label} {place.cpus}", *inner]


Rectangle = tuple[float, float, float, float]


def _rectangles(svg: str) -> list[Rectangle]:
    found = []
    for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect"):  # noqa: S314 -- ours
        left, top = float(each.attrib["x"]), float(each.attrib["y"])
        right = left + float(each.attrib["width"])
        found.append((left, top, right, top + float(each.attrib["height"])))
    return found


def _overlap_badly(box: Rectangle, other: Rectangle) -> bool:
    """Neither apart nor one inside the other."""
    apart = box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
    return not (apart or _inside(box, other) or _inside(other, box))


def _inside(inner: Rectangle, outer: Rectangle) -> bool:
    return (
        outer[0] <= inner[0]
        and outer[1] <= inner[1]
        and inner[2] <= outer[2]
        and inner[3] <= outer[3]
    )


@pytest.mark.parametrize(
    ("described", "cpus"),
    [
        ({"cores": 2}, 2),
        ({"packages": 2, "cores": 64, "threads": 2, "l3_cores": 8, "nodes": 8}, 256),
    ],
    ids=["2 CPUs", "256 CPUs"],
)
def test_a_drawing_is_legible(tmp_path: Path, described: dict[str, int], cpus: int) -> None:
    """Every CPU is there once, in a box that holds its number; boxes are apart or inside."""
    host = read(write_host(tmp_path, **described), {"cpus", "nodes"})
    svg = draw(host)
    root = ET.fromstring(svg)  # noqa: S314 -- ours
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(int(text) for text in texts if text and text.isdecimal()) == list(range(cpus))
    boxes = _rectangles(svg)
    assert all(_inside(box, (0, 0, width, height)) for box in boxes)
    assert all(box[2] - box[0] >= 34 and box[3] - box[1] >= 20 for box in boxes)
    assert not any(_overlap_badly(box, other) for box, other in combinations(boxes, 2))
    # It goes on a screen: neither a thread of boxes nor a tower.
    assert 0.25 < width / height < 4


def test_a_drawing_shows_what_stands_apart(shown: Host) -> None:
    """Memory-only nodes, CPUs that are offline, devices; text is escaped."""
    svg = draw(shown)
    for text in (">memory only<", ">offline<", ">0000:3b:00.0 ens7 (2 VFs)<", ">node 0: 4 GiB<"):
        assert text in svg
    assert CpuSet({7}) == shown.present - shown.online


def test_a_drawing_escapes_what_the_host_says(tmp_path: Path) -> None:
    """A processor may call itself anything."""
    files = {"proc/cpuinfo": "model name : <script>&"}
    assert "&lt;script&gt;&amp;" in draw(read(write_host(tmp_path, files=files)))
