"""Captured directories of somebody who does not wish us well, and who still owns them."""

from __future__ import annotations

import json
import os
import signal
import stat
from typing import TYPE_CHECKING

import pytest

from kvmhooks.devices import list_devices
from kvmhooks.host import Host, read, to_json
from kvmhooks.host.files.tree import Tree
from kvmhooks.host.picture import picture
from kvmhooks.host.read import read_tree
from tests.fakedevices import FakeIrq, FakePci
from tests.fakehost import write_host
from tests.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CPU = "sys/devices/system/cpu"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Fail what waits or takes for ever."""

    def fail(*_: object) -> None:
        raise TimeoutError("it took a minute")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four cores, a display and an interrupt."""
    display = FakePci("0000:00:02.0", class_="0x030000", driver="i915")
    return write_host(tmp_path / "host", cores=4, pci=(display,), irqs=(FakeIrq(9, "acpi"),))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Another host, which is not to be seen."""
    return write_host(tmp_path / "outside", cores=4, packages=2, max_khz=666_000)


class Swapper(Watcher):
    """Puts a link to another tree in the place of a directory when one before it is read."""

    def __init__(self, root: Path, seen: str, swapped: str, target: Path) -> None:
        super().__init__(root)
        self._seen, self._swapped, self._target = seen, swapped, target

    def saw_directory(self, path: str) -> None:
        """Swap, once."""
        place = self.root / self._swapped
        if path == self._seen and not place.is_symlink():
            place.rename(self.root / "swapped")
            place.symlink_to(self._target / self._swapped)

    def saw_flaw(self, path: str, what: str) -> None:
        """There will be some."""

    def saw_text(self, path: str, text: str) -> str:
        """Show what the reader gets, wherever that is by now."""
        assert text != "666000", f"{path} is read outside of the tree"
        return text


@pytest.mark.parametrize(
    ("seen", "swapped"),
    [
        (f"{CPU}/cpu0", f"{CPU}/cpu1"),
        (f"{CPU}/cpu0", f"{CPU}/cpu1/cpufreq"),
        (f"{CPU}/cpu1/cpufreq", CPU),
        (f"{CPU}/cpu2", "sys/devices"),
        (CPU, "sys/devices/system"),
    ],
)
def test_what_becomes_a_link_while_it_is_read_is_not_followed(
    root: Path, outside: Path, seen: str, swapped: str
) -> None:
    """A file that was no link when it was looked at is one when it is opened."""
    host = read_tree(Tree(root, Swapper(root, seen, swapped, outside)), frozenset({"cpus"}))
    assert "666000" not in json.dumps(to_json(host))
    assert (root / swapped).is_symlink()


def test_a_root_that_is_a_link_to_this_machine_is_a_captured_tree(tmp_path: Path) -> None:
    """So no device of this machine is opened, and no libudev asked."""
    (tmp_path / "sent").symlink_to("/")
    assert Tree("/").is_live
    assert not Tree(tmp_path / "sent").is_live


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_in_a_tree_is_not_opened(root: Path) -> None:
    """To open one is to use it: a watchdog starts, a tape is wound back."""
    (root / "proc/version").unlink(missing_ok=True)
    try:
        os.mknod(root / "proc/version", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("not even root may here")
    assert "/proc/version: is no regular file" in read(root).warnings


@pytest.mark.parametrize("path", ["proc/cpuinfo", "proc/interrupts", "proc/mounts", "proc/version"])
def test_a_fifo_that_somebody_writes_to_is_not_read(root: Path, path: str) -> None:
    """Somebody holds it open, so there is neither an end of it nor anything in it."""
    (root / path).unlink(missing_ok=True)
    os.mkfifo(root / path)
    other = os.open(root / path, os.O_RDWR)
    try:
        assert f"/{path}: is no regular file" in read(root).warnings
    finally:
        os.close(other)


@pytest.mark.parametrize("path", ["proc/mounts", "proc/interrupts", "proc/cpuinfo", "proc/version"])
def test_a_file_without_an_end_is_read_up_to_a_bound(root: Path, path: str) -> None:
    """3 GiB of nothing, in one line."""
    with (root / path).open("wb") as file:
        file.truncate(3 << 30)
    warnings = [line for line in read(root).warnings if line.startswith(f"/{path}: ")]
    assert len(warnings) == 1
    assert "long" in warnings[0]


def test_a_link_that_leads_a_long_way_is_left(root: Path) -> None:
    """40 links, each of as many steps as a path may have, would be 80,000 steps for each file."""
    (root / "proc/version").unlink(missing_ok=True)
    (root / "proc/version").symlink_to("../proc/" * 500 + "self")
    assert "/proc/version: the links go round in a circle" in read(root).warnings


NAMES = ["\x1b[2J", "a\nb", "\udcff", "\u2028", "\u202e"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_not_be_shown_is_left_out(root: Path, name: str) -> None:
    """Neither as a device's nor as a driver's; and the warning about it can be shown."""
    pci = root / "sys/bus/pci/devices/0000:00:02.0"
    (pci / "driver").unlink()
    (pci / "driver").symlink_to(f"../drivers/{name}")
    (pci / "mdev_supported_types" / name).mkdir(parents=True)
    (pci / "mdev_supported_types/i915-1").mkdir()
    host = read(root)
    assert [
        (device.driver, [kind.name for kind in device.mdev_types]) for device in host.pci or ()
    ] == [(None, ["i915-1"])]
    told = [line for line in host.warnings if "no name of the kernel's" in line]
    assert len(told) == 2
    assert all(line.isprintable() for line in host.warnings)
    assert name not in picture(host)


def test_flaws_that_a_tree_tells_of_itself_are_shown_escaped(root: Path) -> None:
    """The file of a capture that says what could not be read, written by somebody else."""
    (root / "kvmhooks-flaws").write_text("proc/version\t\x1b]0;owned\x07\r\x85\n")
    assert read(root).warnings == (r"/proc/version: \x1b]0;owned\x07\r\x85",)


ENDS = ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
"""The ends of lines for ``str.splitlines`` and a text file, and not for a kernel."""
SPACES = ["\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u3000"]
"""The white space of ``str.split`` that is none of the kernel's."""


@pytest.mark.parametrize("end", ENDS)
def test_only_a_newline_ends_a_line(root: Path, end: str) -> None:
    """Any user may give such a name to a FUSE file system, a control group or a socket."""
    (root / "proc/mounts").write_text(f"a{end}b\nc\n", newline="\n")
    for recorder in (None, Watcher(root)):
        assert list(Tree(root, recorder).lines("proc/mounts", limit=99)) == [f"a{end}b", "c"]
    (root / "proc/meminfo").write_text(f"x{end}MemTotal: 1 kB\nMemFree: 2 kB\n", newline="\n")
    memory = read(root).memory
    assert memory is not None
    assert (memory.total_kib, memory.free_kib) == (None, 2)


@pytest.mark.parametrize("space", SPACES)
def test_only_space_and_tab_are_between_words(root: Path, space: str) -> None:
    """The same with what the kernel does not escape in it."""
    (root / "proc/mounts").write_text(f"a{space}/x{space}cgroup2{space}rw /mnt fuse rw 0 0\n")
    cgroup = read(root).cgroup
    assert cgroup is None or cgroup.version is None


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/devices/system/node/node0/distance", "9" * 5000),
        ("sys/devices/system/node/node0/distance", "\u0661\u0660"),
        ("proc/interrupts", f"     CPU0 CPU1 CPU2 CPU3\n 1: {'9' * 5000} 0 0 0 x\n"),
        ("proc/interrupts", "     CPU0 CPU1 CPU2 CPU3\n 1: \u00b2 0 0 0 x\n"),
        ("proc/mounts", "cgroup2 /sys/fs/\0cgroup cgroup2 rw 0 0\n"),
        ("proc/swaps", "Filename Type\n\x0b\n"),
        ("proc/swaps", "Filename Type\n/dev/\\000 partition\n"),
        ("proc/sys/kernel/osrelease", "\u00b2.\u00b2"),
        ("proc/self/mountinfo", "1 2 8:1 / / rw - ext4 /dev/\0 rw x y\n"),
    ],
)
def test_a_number_or_name_of_no_kernel_is_no_traceback(root: Path, path: str, text: str) -> None:
    """Digits that Python does not turn into a number, a NUL where no path has one."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
    assert isinstance(read(root), Host)
    assert len(list_devices(root)) == 1


def test_disks_that_stack_in_every_way_take_no_longer(root: Path) -> None:
    """Forty layers of two, each on both below it, are a million million ways up."""
    block = root / "sys/block"
    for layer in range(40):
        for side in "ab":
            holders = block / f"dm-{layer}{side}/holders"
            holders.mkdir(parents=True)
            for other in "ab" if layer < 39 else "":
                (holders / f"dm-{layer + 1}{other}").mkdir()
            (block / f"dm-{layer}{side}/dev").write_text(f"253:{layer}{ord(side)}\n")
    assert len(list_devices(root)) == 1


def test_interfaces_that_stack_in_every_way_take_no_longer(root: Path) -> None:
    """Twenty interfaces, each above all others, and itself."""
    for name in range(20):
        for other in range(20):
            (root / f"sys/class/net/eth{name}/upper_eth{other}").mkdir(parents=True)
    assert len(list_devices(root)) == 1
