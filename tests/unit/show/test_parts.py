"""The small parts of the renderings."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvmhooks.libvirt.xml.disks import letters
from kvmhooks.machine.arguments import option
from kvmhooks.machine.element import Element, element, yes_no
from kvmhooks.machine.pci_layout import GuestPciAddress, Port
from kvmhooks.show.plan_text import picture
from kvmhooks.show.shell import command_line
from kvmhooks.show.table import table
from tests.golden.cases import golden_plan


def test_disks_are_lettered_as_the_kernel_does() -> None:
    """After z comes aa, after az ba, after zz aaa."""
    names = {0: "a", 25: "z", 26: "aa", 51: "az", 52: "ba", 701: "zz", 702: "aaa"}
    assert {index: letters(index) for index in names} == names


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_letters_are_unique_and_ordered(index: int, other: int) -> None:
    """Two disks have two names, in the order of length, then of letters."""
    names = [(len(letters(index)), letters(index)) for index in (index, other)]
    assert (names[0] < names[1], names[0] == names[1]) == (index < other, index == other)


def test_ports_fill_slots_of_eight() -> None:
    """The ninth device is in the second slot; function 0 of each slot announces the others."""
    ports = golden_plan("disks", "laptop").hardware.layout.ports
    assert ports == tuple(Port(f"disk{at}", at + 1, at) for at in range(10))
    told = [
        (port.bus, port.slot, port.function, port.announces_others, port.number)
        for port in (ports[at] for at in (0, 7, 8, 9))
    ]
    assert told == [
        ("pci.1", 1, 0, True, 0x08),
        ("pci.8", 1, 7, False, 0x0F),
        ("pci.9", 2, 0, True, 0x10),
        ("pci.10", 2, 1, False, 0x11),
    ]


@pytest.mark.parametrize(
    ("vm", "devices"),
    [
        ("network", "net0 net1 net2"),
        ("firmware", "disk0 disk1 disk2 virtio-serial0"),
        ("storage", "scsi0 scsi1 disk0 disk4 disk5 disk6 disk7 nvme0"),
        ("windows", "net0 virtio-serial0 usb"),
        ("filed", "virtio-serial0 mdev0 fs0 input0 vsock rng"),
    ],
)
def test_devices_are_plugged_in_in_their_order(vm: str, devices: str) -> None:
    """Interfaces come first, then controllers and disks, then the rest; each has a port."""
    ports = golden_plan(vm, "laptop").hardware.layout.ports
    assert [port.device for port in ports] == devices.split()


def test_a_screen_moves_the_ports_on() -> None:
    """Slot 1 of the root bus is the graphics card's, as libvirt has it."""
    layout = golden_plan("windows", "laptop").hardware.layout
    assert (layout.places["video"], layout.ports[0].slot) == (GuestPciAddress(0, 1), 2)


def test_an_option_leaves_out_what_is_not_said() -> None:
    """None is left out, false and zero are not; a comma in a value stays in it."""
    assert option("device", {"driver": "a,b", "x": None, "y": False, "z": 0}) == [
        "-device",
        '{"driver":"a,b","y":false,"z":0}',
    ]


def test_an_element_leaves_out_what_is_not_said() -> None:
    """Attributes that are None are left out, and text is written as it is printed."""
    made = element("cell", {"id": 0, "node": None}, [element("page")], text=4)
    assert made == Element("cell", {"id": "0"}, (Element("page", {}),), "4")
    assert (yes_no(flag=True), yes_no(flag=False)) == ("yes", "no")


@given(
    st.lists(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")),
        min_size=1,
        max_size=9,
    )
)
@example(["", "-"])
@settings(max_examples=25)
def test_a_shell_reads_the_arguments_back(argv: list[str]) -> None:
    """The line that is printed for a shell is the same argument list again."""
    script = "printf '%s\\0' " + command_line(argv)
    read = subprocess.run(["sh", "-c", script], check=True, capture_output=True).stdout
    assert read.decode().split("\0")[:-1] == argv


def test_a_table_is_as_wide_as_its_cells() -> None:
    """Columns align, lines end without a space, a table may have no rows."""
    assert table(("a", "bb"), [("ccc", ""), ("", "d")]) == ["a    bb", "ccc", "     d"]
    assert table(("a", "b"), []) == ["a  b"]


def test_the_picture_of_an_exclusive_plan() -> None:
    """Every thread, every cell, what is exclusive, and every reason have a line."""
    assert picture(golden_plan("wide", "server")).splitlines() == [
        "wide: 8 vCPUs (4 cores x 2 threads), 4GiB, kvm, CPU host",
        "thread      cell  planned CPUs",
        "vCPU 0      0     4",
        "vCPU 1      0     12",
        "vCPU 2      0     5",
        "vCPU 3      0     13",
        "vCPU 4      0     6",
        "vCPU 5      0     14",
        "vCPU 6      0     7",
        "vCPU 7      0     15",
        "iothread 2        0,8",
        "emulator          0,8",
        "cell 0: vCPUs 0-7, 4GiB in pages of 1GiB from node 1 (strict)",
        "exclusive: CPUs 4-7,12-15; the host keeps 0,8",
        "why: 8 vCPUs on 4 whole cores of node 1: one node is enough",
        "why: 1 L3 cache: no fewer would do",
        "why: 2 guest threads in a core, as siblings of the host",
        "why: kept for the host: CPUs 0,8",
        "why: QEMU's other threads: CPUs 0,8",
        "why: memory in 1GiB pages, cell 0 from node 1",
        "why: KVM: /dev/kvm works on this host",
        (
            "warning: no CPU on node 1 is left for QEMU's other threads: they are on the nearest, "
            "CPUs 0,8; fewer vCPUs, or memory.cells, leave some"
        ),
    ]
