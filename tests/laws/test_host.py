"""Laws of reading a host."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmhooks.host import Cache, Cpu, HugePages, Node, read, to_json
from kvmhooks.host.files.tree import Tree
from kvmhooks.host.read import read_tree
from kvmhooks.values import CpuSet
from tests.fakedevices import FakeIrq, FakePci, nic_with_functions
from tests.fakehost import FakeHost, write_host
from tests.watcher import Watcher

Damage = Callable[[Path], object]

SLOW_FILES = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def machines(draw: st.DrawFn) -> FakeHost:
    """Machines that are the same all over, with some CPUs offline or kept apart."""
    packages = draw(st.integers(1, 3))
    dies = draw(st.integers(1, 2))
    cores = dies * draw(st.integers(1, 3))
    threads = draw(st.integers(1, 2))
    cpus = packages * cores * threads
    some = st.sets(st.integers(0, cpus - 1), max_size=cpus - 1).map(lambda cpus: str(CpuSet(cpus)))
    nodes = draw(st.integers(1, packages * cores))
    extra = draw(st.integers(0, 2))
    ids = st.lists(st.integers(0, 40), min_size=nodes + extra, max_size=nodes + extra, unique=True)
    return FakeHost(
        packages=packages,
        dies=dies,
        cores=cores,
        threads=threads,
        l3_cores=draw(st.sampled_from([None, 0, 1, 2])),
        l2_cores=draw(st.sampled_from([1, 2])),
        numbering=draw(st.sampled_from(["split", "adjacent"])),
        nodes=nodes,
        node_ids=tuple(sorted(draw(ids))),
        memory_mib=draw(st.integers(1, 1 << 20)),
        free_mib=draw(st.none() | st.integers(0, 100)),
        hugepages={2048: (draw(st.integers(0, 99)), draw(st.integers(0, 99)))},
        distance=draw(st.integers(11, 254)),
        offline=draw(some),
        isolated=draw(some),
        nohz_full=draw(st.none() | some),
        max_khz=draw(st.none() | st.integers(1, 6_000_000)),
        cache_ids=draw(st.booleans()),
    )


@SLOW_FILES
@given(machine=machines())
def test_read_inverts_write(machine: FakeHost, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A random machine, its tree, and the same machine again."""
    root = tmp_path_factory.mktemp("host")
    machine.write(root)
    host = read(root, {"cpus", "nodes"})
    shutil.rmtree(root)
    assert host.warnings == ()
    assert host.caches == _expected_caches(machine)
    assert host.cpus == _expected_cpus(machine)
    assert host.nodes == _expected_nodes(machine)


def _expected_cpus(machine: FakeHost) -> tuple[Cpu, ...]:
    numbers = machine.node_numbers
    isolated, quiet = CpuSet.parse(machine.isolated), CpuSet.parse(machine.nohz_full or "")
    found = []
    for thread in machine.cpus:
        cpu = Cpu(
            id=thread.id,
            online=False,
            isolated=thread.id in isolated,
            nohz_full=None if machine.nohz_full is None else thread.id in quiet,
        )
        if thread.id in machine.online:
            l2, l3 = machine.sharing("l2", thread), machine.sharing("l3", thread)
            has_ids, has_l3 = machine.cache_ids, machine.l3_cores != 0
            cpu = evolve(
                cpu,
                online=True,
                package=thread.package,
                die=thread.die % machine.dies,
                core=thread.core % machine.cores,
                siblings=machine.sharing("core", thread),
                l2=thread.l2 if has_ids else l2.first(),
                l3=(thread.l3 if has_ids else l3.first()) if has_l3 else None,
                node=None if thread.node is None else numbers[thread.node],
                max_khz=machine.max_khz,
            )
        found.append(cpu)
    return tuple(found)


def _expected_caches(machine: FakeHost) -> tuple[Cache, ...]:
    levels = [(1, "Data", 32, "core"), (1, "Instruction", 32, "core"), (2, "Unified", 1024, "l2")]
    if machine.l3_cores != 0:
        levels.append((3, "Unified", 16384, "l3"))
    found = []
    for level, kind, size, place in levels:
        groups = {
            getattr(thread, place): machine.sharing(place, thread)
            for thread in machine.cpus
            if thread.id in machine.online
        }
        for number, cpus in sorted(groups.items(), key=lambda group: group[1].first()):
            ours = number if machine.cache_ids else cpus.first()
            found.append(Cache(level, kind, ours, size, cpus, not machine.cache_ids))
    return tuple(found)


def _expected_nodes(machine: FakeHost) -> tuple[Node, ...]:
    numbers = machine.node_numbers
    size = machine.memory_mib << 10
    return tuple(
        Node(
            id=number,
            cpus=CpuSet(thread.id for thread in machine.cpus if thread.node == at) & machine.online,
            memory_kib=size,
            free_kib=size if machine.free_mib is None else machine.free_mib << 10,
            distances=tuple(10 if other == number else machine.distance for other in numbers),
            hugepages=tuple(
                HugePages(pages, total, free, 0)
                for pages, (total, free) in machine.hugepages.items()
            ),
        )
        for at, number in enumerate(numbers)
    )


RICH = {
    "packages": 2,
    "cores": 2,
    "threads": 2,
    "nodes": 2,
    "nohz_full": "1",
    "cmdline": "isolcpus=domain,1-N hugepagesz=1G hugepages=2 root=UUID=x",
    "pci": (
        *nic_with_functions("0000:3b:00.0", 2, total=8, node=1, group=3),
        FakePci("0000:00:02.0"),
    ),
    "irqs": (FakeIrq(9, "acpi", counts={1: 4}), FakeIrq(33, "nvme0q1", device="0000:00:02.0")),
    "files": {
        "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
        "proc/version": "Linux version 6.1 #1 SMP PREEMPT",
        "proc/cpuinfo": "processor : 0\nmodel : 6\nflags : fpu",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu",
        "sys/fs/resctrl/info/L3/cbm_mask": "fff",
        "sys/fs/resctrl/schemata": "L3:0=fff;1=fff",
        "sys/devices/system/cpu/cpufreq/policy0/related_cpus": "0 1",
        "sys/devices/cpu_core/cpus": "0-3",
        "sys/class/iommu/dmar0/intel-iommu/cap": "8d2008c40660462",
        "sys/devices/system/node/node0/access0/initiators/read_latency": "9",
    },
}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_host(tmp_path_factory.mktemp("rich"), **RICH)


CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"",
            b"\0" * 8,
            b"-1\n",
            b"65535\n",
            b"0-9999999999\n",
            b"f" * 70_000,
            b"\xff\xfe",
            b"(null)",
        ]
    ),
    st.from_regex(rb"[0-9,:=x \-]{1,30}", fullmatch=True),
)


def _overwrite(content: bytes) -> Damage:
    return lambda file: file.write_bytes(content)


DAMAGES: st.SearchStrategy[Damage] = st.one_of(
    CONTENTS.map(_overwrite),
    st.sampled_from([Path.mkdir, os.mkfifo]),
    st.sampled_from(["/etc/passwd", "/proc/cmdline", "x", "../..", "."]).map(
        lambda target: lambda file: file.symlink_to(target)
    ),
    st.just(lambda _: None),
)
"""Things in the place of a file: other bytes, a directory, a FIFO, a link, nothing."""


@settings(SLOW_FILES, max_examples=200)
@given(data=st.data(), damage=DAMAGES)
def test_damage_to_any_file_raises_nothing(rich: Path, data: st.DataObject, damage: Damage) -> None:
    """A host is read whatever stands in the place of any file, and its JSON can be written."""
    files = sorted(path for path in rich.rglob("*") if path.is_file() and not path.is_symlink())
    file = data.draw(st.sampled_from(files))
    before = file.read_bytes()
    file.unlink()
    damage(file)
    try:
        host = read(rich)
        assert "root:x:0" not in json.dumps(to_json(host))
    finally:
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        file.write_bytes(before)


def test_nothing_is_opened_twice(rich: Path) -> None:
    """Every file that all parts together need is read once, by whatever path."""
    watcher = Watcher(rich)
    assert read_tree(Tree(rich, recorder=watcher)) == read(rich)
    counts = Counter(watcher.opened)
    assert {path: count for path, count in counts.items() if count > 1} == {}
    assert len(counts) > 200


def test_only_the_files_of_what_is_asked_for_are_opened(rich: Path) -> None:
    """CPUs and nodes cost neither devices nor interrupts nor the kernel's switches."""
    watcher = Watcher(rich)
    read_tree(Tree(rich, recorder=watcher), frozenset({"cpus", "nodes"}))
    opened = {os.path.relpath(path, rich.resolve()) for path in watcher.opened}
    allowed = ("sys/devices/system/", "sys/devices/cpu_", "sys/kernel/mm/hugepages/")
    others = {path for path in opened if not path.startswith(allowed)}
    assert others == {"proc/meminfo"}
