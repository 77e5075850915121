"""Whole hosts: what is described is what is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kvmhooks.errors import HostError
from kvmhooks.host import (
    PLANNED,
    Cache,
    Cpu,
    Host,
    HugePages,
    Kernel,
    Kvm,
    Memory,
    Node,
    read,
    to_json,
)
from kvmhooks.host.system.system import Isolation
from kvmhooks.values import CpuSet
from tests.fakehost import write_host

SMALL = Host(
    cpus=tuple(
        Cpu(
            id=number,
            online=True,
            package=0,
            die=0,
            core=core,
            siblings=CpuSet.parse(siblings),
            l2=core,
            l3=0,
            node=0,
            max_khz=3_000_000,
            isolated=number == 3,
            nohz_full=False,
        )
        for number, core, siblings in ((0, 0, "0,2"), (1, 1, "1,3"), (2, 0, "0,2"), (3, 1, "1,3"))
    ),
    caches=(
        Cache(1, "Data", 0, 32, CpuSet({0, 2})),
        Cache(1, "Data", 1, 32, CpuSet({1, 3})),
        Cache(1, "Instruction", 0, 32, CpuSet({0, 2})),
        Cache(1, "Instruction", 1, 32, CpuSet({1, 3})),
        Cache(2, "Unified", 0, 1024, CpuSet({0, 2})),
        Cache(2, "Unified", 1, 1024, CpuSet({1, 3})),
        Cache(3, "Unified", 0, 16384, CpuSet({0, 1, 2, 3})),
    ),
    nodes=(
        Node(
            id=0,
            cpus=CpuSet({0, 1, 2, 3}),
            memory_kib=4 << 20,
            free_kib=3 << 20,
            distances=(10,),
            hugepages=(HugePages(2048, 16, 4, 0), HugePages(1 << 20, 1, 0, 0)),
        ),
    ),
    offline_nodes=CpuSet({1}),
    memory=Memory(
        total_kib=4 << 20,
        free_kib=3 << 20,
        available_kib=3 << 20,
        hugepages=(HugePages(2048, 16, 4, 0), HugePages(1 << 20, 1, 0, 0)),
    ),
    kernel=Kernel(
        release="6.1.0-18-amd64",
        cmdline="isolcpus=3",
        isolated=CpuSet({3}),
        nohz_full=CpuSet(),
        parameters={"isolcpus": ("3",)},
        asked=Isolation(isolcpus=CpuSet({3})),
        boot_pages=(),
        sysctls={},
    ),
    kvm=Kvm(
        available=True,
        vendor="intel",
        module_parameters={"kvm.halt_poll_ns": "200000", "kvm_intel.nested": "Y"},
        present=True,
    ),
)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_host(
        tmp_path,
        cores=2,
        threads=2,
        free_mib=3072,
        hugepages={2048: (16, 4), 1 << 20: (1, 0)},
        isolated="3",
        offline_nodes="1",
        nohz_full="",
        cmdline="isolcpus=3",
    )


def test_everything_that_is_described_is_read(small: Path) -> None:
    """A machine of two cores with two threads each, whole."""
    assert read(small, PLANNED) == SMALL


def test_the_json_is_the_contract_with_sets_as_lists(small: Path) -> None:
    """One of each kind of entry, whole; what is not read is null."""
    document = json.loads(json.dumps(to_json(read(small, PLANNED))))
    assert document["cpus"][3] == {
        "id": 3,
        "online": True,
        "package": 0,
        "die": 0,
        "cluster": None,
        "core": 1,
        "siblings": "1,3",
        "l2": 1,
        "l3": 0,
        "node": 0,
        "kind": None,
        "max_khz": 3000000,
        "isolated": True,
        "nohz_full": False,
        "base_khz": None,
        "capacity": None,
        "preference": None,
    }
    assert document["caches"][-1] == {
        "level": 3,
        "type": "Unified",
        "id": 0,
        "size_kib": 16384,
        "cpus": "0-3",
        "numbered_by_cpu": False,
    }
    pools = [
        {"size_kib": 2048, "total": 16, "free": 4, "surplus": 0},
        {"size_kib": 1048576, "total": 1, "free": 0, "surplus": 0},
    ]
    sizes = {"memory_kib": 4194304, "free_kib": 3145728}
    access = ("read_bandwidth_mib", "write_bandwidth_mib", "read_latency_ns", "write_latency_ns")
    assert document["nodes"] == [
        {
            "id": 0,
            "cpus": "0-3",
            **sizes,
            "distances": [10],
            "hugepages": pools,
            "initiators": None,
            **dict.fromkeys(access),
        }
    ]
    assert {name: value for name, value in document["kernel"].items() if value is not None} == {
        "release": "6.1.0-18-amd64",
        "cmdline": "isolcpus=3",
        "isolated": "3",
        "nohz_full": "",
        "parameters": {"isolcpus": ["3"]},
        "asked": {
            "isolcpus": "3",
            "isolcpus_flags": [],
            "nohz_full": None,
            "rcu_nocbs": None,
            "irqaffinity": None,
        },
        "boot_pages": [],
        "sysctls": {},
    }
    assert document["kvm"] == {
        "available": True,
        "vendor": "intel",
        "module_parameters": {"kvm.halt_poll_ns": "200000", "kvm_intel.nested": "Y"},
        "present": True,
    }
    assert document["warnings"] == []
    assert [document[name] for name in ("pci", "irqs", "cgroup", "features")] == [None] * 4


def test_only_the_parts_asked_for_are_read(small: Path) -> None:
    """«cpus» knows the node of each CPU, and nothing else of the nodes."""
    assert read(small, parts={"cpus"}) == Host(cpus=SMALL.cpus, caches=SMALL.caches)
    assert read(small, parts={"nodes"}) == Host(
        nodes=SMALL.nodes, offline_nodes=SMALL.offline_nodes, memory=SMALL.memory
    )
    assert read(small, parts={"kernel"}) == Host(kernel=SMALL.kernel)
    assert read(small, parts={"kvm"}) == Host(kvm=SMALL.kvm)
    with pytest.raises(ValueError, match=r"unknown parts: cpu$"):
        read(small, parts={"cpu"})


@pytest.mark.parametrize(
    ("described", "siblings", "l3", "nodes"),
    [
        pytest.param(
            {"packages": 2, "cores": 2, "threads": 2, "nodes": 2},
            ["0,4", "1,5", "2,6", "3,7"],
            ["0-1,4-5", "2-3,6-7"],
            {0: "0-1,4-5", 1: "2-3,6-7"},
            id="siblings apart",
        ),
        pytest.param(
            {"packages": 2, "cores": 2, "threads": 2, "nodes": 2, "numbering": "adjacent"},
            ["0-1", "2-3", "4-5", "6-7"],
            ["0-3", "4-7"],
            {0: "0-3", 1: "4-7"},
            id="siblings side by side",
        ),
        pytest.param(
            {"cores": 8, "l3_cores": 4, "nodes": 1},
            ["0", "1", "2", "3", "4", "5", "6", "7"],
            ["0-3", "4-7"],
            {0: "0-7"},
            id="two L3 in a node",
        ),
        pytest.param(
            {"cores": 4, "nodes": 2, "node_ids": (1, 3, 8)},
            ["0", "1", "2", "3"],
            ["0-3"],
            {1: "0-1", 3: "2-3", 8: ""},
            id="sparse nodes, one with memory only",
        ),
        pytest.param(
            {"cores": 4, "threads": 2, "offline": "2,5"},
            ["0,4", "1", "3,7", "6"],
            ["0-1,3-4,6-7"],
            {0: "0-1,3-4,6-7"},
            id="CPUs offline",
        ),
        pytest.param(
            {"cores": 2, "cache_ids": False, "l3_cores": 1},
            ["0", "1"],
            ["0", "1"],
            {0: "0-1"},
            id="caches without ids",
        ),
        pytest.param({"cores": 2, "l3_cores": 0}, ["0", "1"], [], {0: "0-1"}, id="no L3"),
        pytest.param({"cores": 2, "nodes": 0}, ["0", "1"], ["0-1"], None, id="no NUMA"),
    ],
)
def test_who_shares_what(
    tmp_path: Path,
    described: dict[str, object],
    siblings: list[str],
    l3: list[str],
    nodes: dict[int, str] | None,
) -> None:
    """Cores, L3s and nodes as sets of CPUs; each CPU points at the cache that holds it."""
    host = read(write_host(tmp_path, **described))
    assert host.warnings == ()
    assert sorted({str(cpu.siblings) for cpu in host.cpus or () if cpu.online}) == siblings
    assert [str(cache.cpus) for cache in host.caches or () if cache.level == 3] == l3
    told = None if host.nodes is None else {node.id: str(node.cpus) for node in host.nodes}
    assert told == nodes
    for cpu in host.cpus or ():
        holders = [cache.id for cache in host.caches or () if _is_l3_of(cache, cpu.id)]
        assert holders == ([] if cpu.l3 is None else [cpu.l3])
        assert cpu.id not in host.online or cpu.siblings is not None
        assert cpu.node == next(
            (number for number, cpus in (nodes or {}).items() if cpu.id in CpuSet.parse(cpus)), None
        )


def _is_l3_of(cache: Cache, cpu: int) -> bool:
    return cache.level == 3 and cpu in cache.cpus


def test_a_kernel_without_numa_has_memory_but_no_node(tmp_path: Path) -> None:
    """No node 0 is made up: there is nothing to bind to. The memory is still known."""
    host = read(write_host(tmp_path, nodes=0, memory_mib=2048, free_mib=1024))
    assert host.nodes is None
    assert {cpu.node for cpu in host.cpus or ()} == {None}
    assert host.memory is not None
    assert (host.memory.total_kib, host.memory.free_kib) == (2 << 20, 1 << 20)


def test_a_hybrid_says_which_cores_are_which(tmp_path: Path) -> None:
    """By the PMUs of an Intel hybrid."""
    host = read(write_host(tmp_path, cores=4, efficiency="2-3"))
    assert [cpu.kind for cpu in host.cpus or ()] == ["performance"] * 2 + ["efficiency"] * 2


def test_an_offline_cpu_is_there_and_unknown(tmp_path: Path) -> None:
    """The kernel tells nothing of the topology of a CPU that is offline."""
    host = read(write_host(tmp_path, cores=2, offline="1"))
    assert host.cpu(1) == Cpu(id=1, online=False, isolated=False)
    assert (host.present, host.online) == (CpuSet({0, 1}), CpuSet({0}))
    assert host.warnings == ()


def test_what_is_no_host_is_refused(tmp_path: Path) -> None:
    """A missing or an empty directory is an error that names it, not an empty host."""
    with pytest.raises(HostError, match="nowhere: cannot be read: No such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(HostError, match="holds neither sys nor proc"):
        read(tmp_path)


def test_links_of_a_captured_tree_stay_in_the_tree(tmp_path: Path) -> None:
    """An absolute link means the tree's own file, as it did where it was captured."""
    root = write_host(tmp_path, cores=2)
    node = root / "sys/devices/system/node"
    shutil.move(node, root / "sys/devices/elsewhere")
    node.symlink_to("/sys/devices/elsewhere")
    assert read(root) == read(write_host(tmp_path / "plain", cores=2))


def test_this_machine_can_be_read() -> None:
    """The live host has this very CPU, and what is asked of it costs no traceback."""
    host = read("/")
    assert host.cpus is not None
    assert host.online
    assert host.kernel is not None
    assert host.kernel.release == Path("/proc/sys/kernel/osrelease").read_text().strip()
