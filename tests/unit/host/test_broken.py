"""Broken trees: null in the model, a warning that says what and where, never a traceback."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from kvmhooks.host import Cpu, Host, read
from kvmhooks.host.files.tree import Tree
from kvmhooks.values import CpuSet
from tests.fakehost import write_host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four cores of one thread, one L3, one node."""
    return write_host(tmp_path, cores=4)


def _siblings(host: Host) -> list[str | None]:
    return [None if cpu.siblings is None else str(cpu.siblings) for cpu in host.cpus or ()]


@pytest.mark.parametrize("damage", ["-1", "65535", "-7", "zero", "", "99999999999999999999999"])
def test_a_core_without_a_usable_id_has_none(root: Path, damage: str) -> None:
    """Ids that mean «unknown», and what is no number."""
    (root / f"{CPU}/cpu1/topology/core_id").write_text(f"{damage}\n")
    host = read(root)
    assert [cpu.core for cpu in host.cpus or ()] == [0, None, 2, 3]
    assert len(host.warnings) == 1
    assert host.warnings[0].startswith(f"/{CPU}/cpu1/topology/core_id: ")


def test_the_same_flaw_of_many_cpus_is_told_once(root: Path) -> None:
    """Their numbers are written as one set."""
    for cpu in range(4):
        (root / f"{CPU}/cpu{cpu}/topology/physical_package_id").write_text("-1\n")
    host = read(root)
    assert [cpu.package for cpu in host.cpus or ()] == [None] * 4
    assert host.warnings == (f"/{CPU}/cpu{{0-3}}/topology/physical_package_id: -1 is no id",)


def test_trailing_nul_bytes_are_no_damage(root: Path) -> None:
    """Captures of old kernels and of some tools pad with NUL bytes."""
    for file in (root / CPU / "cpu2").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes().rstrip(b"\n") + b"\0" * 9)
    assert read(root) == read(write_host(root / "undamaged", cores=4))


@pytest.mark.parametrize(
    ("content", "siblings", "warning"),
    [
        ("c", None, "2-3 does not hold the CPU itself"),
        ("3", None, "0-1 contradicts what the others of it say"),
        ("not a mask", "1", "found 'not a mask', expected a hex mask"),
    ],
)
def test_siblings_that_contradict_each_other_are_unknown(
    root: Path, content: str, siblings: str | None, warning: str
) -> None:
    """A mask without the CPU itself, or that the other CPU does not confirm; the list helps out."""
    (root / f"{CPU}/cpu1/topology/core_cpus").write_text(content)
    host = read(root)
    assert _siblings(host) == ["0", siblings, "2", "3"]
    assert host.warnings == (f"/{CPU}/cpu1/topology/core_cpus: {warning}",)


LEAF = "cache/index3/shared_cpu_map"


def test_one_cpu_that_lies_does_not_cost_the_others_their_cache(root: Path) -> None:
    """CPU 3 says that it shares with 2 only, the others say all four: it is all four's."""
    (root / f"{CPU}/cpu3/{LEAF}").write_text("0000000c\n")
    host = read(root)
    assert [cpu.l3 for cpu in host.cpus or ()] == [0] * 4
    assert [cpu.l2 for cpu in host.cpus or ()] == [0, 1, 2, 3]
    assert host.warnings == (f"/{CPU}/cpu3/{LEAF}: 2-3 contradicts what other CPUs say",)


def test_caches_without_a_majority_are_unknown(root: Path) -> None:
    """CPUs 2 and 3 say that they share with each other, two others that all four do."""
    for cpu in (2, 3):
        (root / f"{CPU}/cpu{cpu}/{LEAF}").write_text("0000000c\n")
    (root / f"{CPU}/cpu1/{LEAF}").write_text("0000000e\n")
    host = read(root)
    assert [cpu.l3 for cpu in host.cpus or ()] == [None, None, 0, 0]
    assert host.warnings == (
        f"/{CPU}/cpu0/{LEAF}: 0-3 contradicts what other CPUs say",
        f"/{CPU}/cpu1/{LEAF}: 1-3 contradicts what other CPUs say",
    )


def test_a_cache_without_its_sharing_is_known_from_the_others(root: Path) -> None:
    """Each of its CPUs names them all, so one may be silent; if all are, it is unknown."""
    for name in ("shared_cpu_map", "shared_cpu_list"):
        (root / f"{CPU}/cpu0/cache/index3" / name).unlink()
        (root / f"{CPU}/cpu0/cache/index2" / name).unlink()
    host = read(root)
    assert [cpu.l3 for cpu in host.cpus or ()] == [0] * 4
    assert [cpu.l2 for cpu in host.cpus or ()] == [None, 1, 2, 3]
    assert host.warnings == tuple(
        f"/{CPU}/cpu0/cache/index{index}/shared_cpu_map: does not say who shares this cache"
        for index in (2, 3)
    )


def test_a_cpu_without_topology_is_there_and_unknown(root: Path) -> None:
    """Online by the list, nothing else known."""
    for directory in ("topology", "cache"):
        _remove(root / f"{CPU}/cpu2/{directory}")
    host = read(root)
    assert host.warnings == (f"/{CPU}/cpu2/topology: is missing",)
    assert host.cpu(2) == Cpu(id=2, online=True, l3=0, node=0, max_khz=3_000_000, isolated=False)


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        (f"{CPU}/cpu2/topology/core_id", f"{CPU}/cpu2/topology/core_id"),
        (f"{CPU}/cpu2/topology/physical_package_id", f"{CPU}/cpu2/topology/physical_package_id"),
        (f"{CPU}/cpu2/topology/*_*s*", f"{CPU}/cpu2/topology/core_cpus"),
        (f"{NODE}/node0/meminfo", f"{NODE}/node0/meminfo"),
        (f"{NODE}/node0/distance", f"{NODE}/node0/distance"),
        (f"{NODE}/node0/cpu*", f"{NODE}/node0/cpumap"),
    ],
)
def test_a_file_that_every_kernel_has_is_missed(root: Path, missing: str, told: str) -> None:
    """The lack of what not all machines have (a die, a cluster, an L3, huge pages) is no flaw."""
    for file in root.glob(missing):
        if "_id" not in file.name or "_id" in missing:
            file.unlink()
    assert read(root).warnings == (f"/{told}: is missing",)


def test_a_node_that_does_not_say_its_memory_is_said(root: Path) -> None:
    """The file is there, and says something else."""
    (root / f"{NODE}/node0/meminfo").write_text("Node 0 MemTotal: plenty\n")
    host = read(root)
    assert host.node(0).memory_kib is None
    assert host.warnings == (f"/{NODE}/node0/meminfo: does not say how much memory there is",)


def test_a_cpu_that_only_the_list_knows_is_there_and_said(root: Path) -> None:
    """The list names CPU 4, which has no directory."""
    (root / f"{CPU}/online").write_text("0-4\n")
    host = read(root)
    assert host.cpu(4) == Cpu(id=4, online=True, isolated=False)
    assert host.warnings == (f"/{CPU}/cpu4: is not there, though the CPU is listed as online",)


def test_without_the_list_each_cpu_says_whether_it_is_online(root: Path) -> None:
    """One without an ``online`` file cannot be taken offline; without topology it is unknown."""
    (root / f"{CPU}/online").unlink()
    (root / f"{CPU}/cpu0/online").unlink()
    (root / f"{CPU}/cpu1/online").write_text("0\n")
    (root / f"{CPU}/cpu2/online").unlink()
    _remove(root / f"{CPU}/cpu2/topology")
    assert [cpu.online for cpu in read(root).cpus or ()] == [True, False, None, True]


def test_a_cpu_in_two_nodes_is_in_none(tmp_path: Path) -> None:
    """Both lists stand as they are, the CPU's own node is unknown."""
    root = write_host(tmp_path, cores=4, nodes=2)
    (root / f"{NODE}/node1/cpumap").write_text("0000000e\n")
    host = read(root)
    assert [cpu.node for cpu in host.cpus or ()] == [0, None, 1, 1]
    assert host.warnings == (f"/{NODE}: CPUs 1 are in more than one node",)


@pytest.mark.parametrize("content", ["10 20 30\n", "10 999\n", "near far\n", "\n"])
def test_distances_that_are_not_one_for_each_node_are_unknown(tmp_path: Path, content: str) -> None:
    """Nobody can know whose they are."""
    root = write_host(tmp_path, cores=4, nodes=2)
    (root / f"{NODE}/node1/distance").write_text(content)
    host = read(root)
    assert [node.distances for node in host.nodes or ()] == [(10, 20), None]
    assert len(host.warnings) == 1


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("sys/kernel/debug/sched", ()),
        ("proc/cmdline", ("/proc/cmdline: cannot be read: Permission denied",)),
    ],
)
def test_only_debugfs_may_be_shut(root: Path, path: str, told: tuple[str, ...]) -> None:
    """It is root's own; anything else that cannot be read is said."""
    tree = Tree(root)
    tree.refuse(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    assert tree.flaws.told() == told


def _remove(directory: Path) -> None:
    for entry in sorted(directory.rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()
    directory.rmdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _endless(path: Path) -> None:
    path.write_bytes(b"1" * 100_000)


def _link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("../" * 40 + "etc/passwd")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("damage", [_fifo, _directory, _endless, _link_out, _loop])
@pytest.mark.parametrize("file", [f"{CPU}/online", f"{CPU}/cpu1/topology/core_id", "proc/cmdline"])
def test_what_is_no_plain_file_is_not_waited_for(
    root: Path, damage: Callable[[Path], None], file: str
) -> None:
    """A FIFO, a directory, an endless file, a link that leaves the tree or goes in a circle."""
    whole = read(root)
    damage(root / file)
    host = read(root)
    assert host.online == CpuSet({0, 1, 2, 3})
    assert host.nodes == whole.nodes
    assert "etc/passwd" not in str(host)
