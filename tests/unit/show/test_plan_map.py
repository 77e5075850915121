"""A host with VMs in place: the text whole, the drawing by its words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attrs import evolve

from kvmhooks.host import Host, read
from kvmhooks.inventory.usage import Holding
from kvmhooks.placement import Cell, IothreadPin, Plan, VcpuPin, plan
from kvmhooks.show.plan_map import letters, placed_drawing, placed_text
from kvmhooks.spec.model import VmName
from kvmhooks.spec.structure import structure
from kvmhooks.values import CpuSet
from tests.fakehost import write_host

OTHER = Holding(
    name="other",
    uuid="00000000-0000-0000-0000-000000000000",
    exclusive=CpuSet([5]),
    dedicated=CpuSet([13]),
)

TEXT = """\
a is db, b is web
a0 vCPU 0 of a, alone; a~ vCPUs of a float here; a+ QEMU's other threads of a; # another VM's;
x kept idle beside a vCPU; - the host's own; . free
node 0: 4 GiB, 1 GiB free
  memory       a 1GiB (cell 0, 2MiB pages), b 256MiB (cell 0, 4KiB pages)
  L3 16 MiB    [ 0:b~  8:b~] [ 1:a+  9:a+]
  L3 16 MiB    [ 2:a0 10:a1] [ 3:a2]
node 1: 4 GiB, 1 GiB free
  L3 16 MiB    [ 4:-  12:- ] [ 5:#  13:# ]
  L3 16 MiB    [ 6:.  14:. ] [ 7:.  15:x ]
node 4: 4 GiB, 1 GiB free
  memory       a 512MiB (cell 1, 2MiB pages)
  0 CPUs: memory only
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root = write_host(
        tmp_path,
        packages=2,
        cores=4,
        threads=2,
        l3_cores=2,
        nodes=2,
        node_ids=(0, 1, 4),
        free_mib=1024,
        offline="11",
    )
    return read(root)


@pytest.fixture
def plans(host: Host) -> list[Plan]:
    """Two plans by hand: whatever the planner would do, this is what is drawn."""
    document = {"name": "db", "cpu": {"vcpus": 3}, "memory": {"size": "1536MiB"}}
    some = plan(structure(document, Path("/vms")), host)
    db = evolve(
        some,
        vcpus=tuple(VcpuPin(vcpu, CpuSet([cpu])) for vcpu, cpu in enumerate((2, 10, 3))),
        dedicated=CpuSet(range(3)),
        emulator=CpuSet([1]),
        vhost=CpuSet(),
        iothreads=(IothreadPin(1, CpuSet([9])),),
        idle=CpuSet([15]),
        cells=(
            Cell(0, 0, CpuSet(range(3)), 1 << 20, 2048),
            Cell(1, 4, CpuSet(), 1 << 19, 2048),
        ),
        housekeeping=CpuSet.parse("0,4,8,12"),
    )
    web = evolve(
        some,
        spec=evolve(some.spec, name=VmName("web")),
        vcpus=(VcpuPin(0, CpuSet.parse("0,8")),),
        emulator=CpuSet.parse("0,8"),
        vhost=CpuSet(),
        iothreads=(),
        cells=(Cell(0, 0, CpuSet([0]), 1 << 18, 4),),
        housekeeping=db.housekeeping,
    )
    return [db, web]


def test_every_cpu_says_what_it_is_given_to(host: Host, plans: list[Plan]) -> None:
    """A line for each L3, a bracket for a core, the memory at its node; offline CPUs have none."""
    assert placed_text(host, plans, [OTHER]) == TEXT


def test_a_kernel_without_nodes_has_one_picture(tmp_path: Path) -> None:
    """Its CPUs are of no node, and so is the memory."""
    host = read(write_host(tmp_path, nodes=0, l3_cores=0))
    document = {"name": "vm", "cpu": {"vcpus": 2}, "memory": {"size": "512MiB"}}
    picture = placed_text(host, [plan(structure(document, Path("/vms")), host)])
    assert picture.splitlines()[2:] == [
        "CPUs of no node",
        "  memory       a 512MiB (cell 0, 4KiB pages)",
        "  no L3        [0:a~] [1:a~]",
    ]


def test_the_drawing_names_the_vm_on_each_thread(host: Host, plans: list[Plan]) -> None:
    """The same in words beside the CPU's number, each VM in a colour of its own."""
    drawn = placed_drawing(host, plans, [OTHER])
    threads = dict(re.findall(r">(\d+) ([a-z:~+0-9 ]+)</text>", drawn))
    assert threads == {
        "0": "web~", "8": "web~", "1": "db+", "9": "db+",
        "2": "db:0", "10": "db:1", "3": "db:2",
        "4": "host", "12": "host", "5": "taken", "13": "taken", "15": "idle",
    }  # fmt: skip
    assert all(f">{cpu}</text>" in drawn for cpu in (6, 14, 7))
    coloured = re.findall(r'fill="(#\w+)" [^>]*/>\n<text[^>]*>\d+ (web|db)', drawn)
    assert len(coloured) == 7
    assert len(set(coloured)) == len({vm for _, vm in coloured}) == 2


def test_vms_have_letters() -> None:
    """The letters are those of the columns of a sheet."""
    assert [letters(index) for index in (0, 25, 26, 27, 702)] == ["a", "z", "aa", "ab", "aaa"]
