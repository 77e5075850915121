"""A host made of files: a few lines describe it, ``write`` makes its tree.

What is written is what Linux 6.x writes for such a machine (Documentation/ABI/stable/
sysfs-devices-system-cpu and sysfs-devices-node), with masks and lists both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from kvmhooks.values import CpuSet
from tests.fakedevices import FakeIrq, FakePci, write_devices

if TYPE_CHECKING:
    from pathlib import Path

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"


def write_host(root: Path, **described: Any) -> Path:
    """Write the tree of a ``FakeHost`` described by its fields, and give its root back."""
    FakeHost(**described).write(root)
    return root


LARGE_SERVER: dict[str, Any] = {
    "packages": 2,
    "cores": 8,
    "threads": 2,
    "nodes": 2,
    "memory_mib": 262_144,
    "hugepages": {2048: (65_536, 65_536), 1_048_576: (64, 64)},
}
"""A host that holds any of the tests' domains, as ``write_host`` takes it."""


@dataclass(frozen=True)
class Thread:
    """One logical CPU and where it sits; all numbers of places count over the whole machine."""

    id: int
    package: int
    die: int
    core: int
    l2: int
    l3: int
    node: int | None


@dataclass(frozen=True)
class FakeHost:
    """A machine that is the same all over: so many packages of so many cores."""

    packages: int = 1
    dies: int = 1
    """In each package."""
    cores: int = 2
    """In each package."""
    threads: int = 1
    """Of each core."""
    l3_cores: int | None = None
    """The number of cores that share an L3; None: all of a die. 0: there is no L3."""
    l2_cores: int = 1
    numbering: Literal["split", "adjacent"] = "split"
    """The numbering of siblings: 0 and N apart as Intel does, or 0-1 side by side."""
    nodes: int = 1
    """The number of nodes that the CPUs are dealt out to, in order; 0: a kernel without NUMA."""
    node_ids: tuple[int, ...] = ()
    """Their numbers, if not from 0 on; numbers beyond ``nodes`` are nodes with memory only."""
    memory_mib: int = 4096
    """Of each node."""
    free_mib: int | None = None
    hugepages: dict[int, tuple[int, int]] = field(default_factory=lambda: {2048: (0, 0)})
    """The pools of each node: size in KiB to (total, free)."""
    distance: int = 20
    """From any node to any other."""
    offline: str = ""
    offline_nodes: str = ""
    isolated: str = ""
    nohz_full: str | None = None
    """None: the kernel cannot do it, and has no such file."""
    efficiency: str = ""
    """The CPUs that are efficiency cores of an Intel hybrid."""
    max_khz: int | None = 3_000_000
    cache_ids: bool = True
    """False as before Linux 4.10: the kernel numbers no caches."""
    release: str = "6.1.0-18-amd64"
    cmdline: str = "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro"
    kvm: Literal["intel", "amd"] | None = "intel"
    pci: tuple[FakePci, ...] = ()
    irqs: tuple[FakeIrq, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    """Anything else, by path."""

    @cached_property
    def cpus(self) -> tuple[Thread, ...]:
        """All CPUs, lowest first."""
        total = self.packages * self.cores
        made = []
        for at in range(total):
            package, within = divmod(at, self.cores)
            die = package * self.dies + within * self.dies // self.cores
            l3_of = self.l3_cores or -(-self.cores // self.dies)
            for thread in range(self.threads):
                split = self.numbering == "split"
                made.append(
                    Thread(
                        id=at + thread * total if split else at * self.threads + thread,
                        package=package,
                        die=die,
                        core=at,
                        l2=package * self.cores + within // self.l2_cores,
                        l3=package * self.cores + within // l3_of,
                        node=at * self.nodes // total if self.nodes else None,
                    )
                )
        return tuple(sorted(made, key=lambda thread: thread.id))

    @cached_property
    def online(self) -> CpuSet:
        return CpuSet(thread.id for thread in self.cpus) - CpuSet.parse(self.offline)

    @property
    def node_numbers(self) -> tuple[int, ...]:
        """The numbers of all nodes, those with CPUs first."""
        return self.node_ids or tuple(range(self.nodes))

    def sharing(self, place: str, thread: Thread) -> CpuSet:
        """The online CPUs at the same place (``core``, ``l3``, …) as one of them."""
        return self._places[place, getattr(thread, place)]

    @cached_property
    def _places(self) -> dict[tuple[str, int], CpuSet]:
        """The online CPUs of each place."""
        found: dict[tuple[str, int], list[int]] = {}
        for cpu in self.cpus:
            if cpu.id in self.online:
                for place in ("package", "die", "core", "l2", "l3", "node"):
                    found.setdefault((place, getattr(cpu, place)), []).append(cpu.id)
        return {place: CpuSet(cpus) for place, cpus in found.items()}

    def write(self, root: Path) -> None:
        """Make the tree below ``root``."""
        Writer(root).write_all(self)


@dataclass(frozen=True)
class Writer:
    """Writes files below a root."""

    root: Path

    def put(self, path: str, value: object = "") -> None:
        """Write one file as the kernel does, with a newline at its end."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")

    def link(self, path: str, target: str) -> None:
        """Make one symbolic link."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def put_set(self, path: str, mask: str, listed: str, cpus: CpuSet) -> None:
        """Write a set of CPUs in both forms."""
        self.put(f"{path}/{mask}", cpus.format_mask(64))
        self.put(f"{path}/{listed}", cpus)

    def write_all(self, host: FakeHost) -> None:
        """Write everything that the description says."""
        present = CpuSet(thread.id for thread in host.cpus)
        for name, cpus in (
            ("possible", present),
            ("present", present),
            ("online", host.online),
            ("offline", present - host.online),
            ("isolated", CpuSet.parse(host.isolated)),
        ):
            self.put(f"{CPU}/{name}", cpus)
        if host.nohz_full is not None:
            self.put(f"{CPU}/nohz_full", host.nohz_full or "(null)")
        for thread in host.cpus:
            self.put(f"{CPU}/cpu{thread.id}/online", int(thread.id in host.online))
            if thread.id in host.online:
                self.write_topology(host, thread)
                self.write_caches(host, thread)
        for at, number in enumerate(host.node_numbers):
            self.write_node(host, at, number)
        self.write_kernel(host)

    def write_topology(self, host: FakeHost, thread: Thread) -> None:
        """Write what the kernel tells of a CPU that is online."""
        topology = f"{CPU}/cpu{thread.id}/topology"
        self.put(f"{topology}/physical_package_id", thread.package)
        self.put(f"{topology}/die_id", thread.die % host.dies)
        self.put(f"{topology}/cluster_id", 65_535)
        self.put(f"{topology}/core_id", thread.core % host.cores)
        core = host.sharing("core", thread)
        for mask in ("core_cpus", "thread_siblings"):
            self.put_set(topology, mask, f"{mask}_list", core)
        package = host.sharing("package", thread)
        self.put_set(topology, "package_cpus", "package_cpus_list", package)
        if host.max_khz is not None:
            self.put(f"{CPU}/cpu{thread.id}/cpufreq/cpuinfo_max_freq", host.max_khz)

    def write_caches(self, host: FakeHost, thread: Thread) -> None:
        """Write L1, L2 and L3."""
        leaves = [
            (1, "Data", "32K", "core"),
            (1, "Instruction", "32K", "core"),
            (2, "Unified", "1024K", "l2"),
            (3, "Unified", "16384K", "l3"),
        ]
        if host.l3_cores == 0:
            del leaves[3]
        for index, (level, kind, size, place) in enumerate(leaves):
            leaf = f"{CPU}/cpu{thread.id}/cache/index{index}"
            self.put(f"{leaf}/level", level)
            self.put(f"{leaf}/type", kind)
            self.put(f"{leaf}/size", size)
            if host.cache_ids:
                self.put(f"{leaf}/id", getattr(thread, place))
            cpus = host.sharing(place, thread)
            self.put_set(leaf, "shared_cpu_map", "shared_cpu_list", cpus)

    def write_node(self, host: FakeHost, at: int, number: int) -> None:
        """Write one node; nodes after the first ``host.nodes`` have memory only."""
        node = f"{NODE}/node{number}"
        cpus = CpuSet(cpu.id for cpu in host.cpus if cpu.node == at) & host.online
        self.put_set(node, "cpumap", "cpulist", cpus)
        total = host.memory_mib * 1024
        free = total if host.free_mib is None else host.free_mib * 1024
        self.put(
            f"{node}/meminfo",
            f"Node {number} MemTotal:       {total} kB\nNode {number} MemFree:        {free} kB",
        )
        distances = [
            10 if other == number else host.distance for other in sorted(host.node_numbers)
        ]
        self.put(f"{node}/distance", " ".join(map(str, distances)))
        self.write_pools(f"{node}/hugepages", host.hugepages)
        self.put(f"{NODE}/online", CpuSet(host.node_numbers))
        possible = CpuSet(host.node_numbers) | CpuSet.parse(host.offline_nodes)
        self.put(f"{NODE}/possible", possible)

    def write_pools(self, path: str, pools: dict[int, tuple[int, int]]) -> None:
        """Write pools of huge pages."""
        for size, (total, free) in pools.items():
            self.put(f"{path}/hugepages-{size}kB/nr_hugepages", total)
            self.put(f"{path}/hugepages-{size}kB/free_hugepages", free)
            self.put(f"{path}/hugepages-{size}kB/surplus_hugepages", 0)

    def write_kernel(self, host: FakeHost) -> None:
        """Write what stands outside the CPUs and nodes."""
        count = max(len(host.node_numbers), 1)
        total = host.memory_mib * 1024 * count
        free = total if host.free_mib is None else host.free_mib * 1024 * count
        self.put(
            "proc/meminfo",
            f"MemTotal:       {total} kB\nMemFree:        {free} kB\nMemAvailable:   {free} kB",
        )
        pools = {
            size: (all_ * count, free * count) for size, (all_, free) in host.hugepages.items()
        }
        self.write_pools("sys/kernel/mm/hugepages", pools)
        self.put("proc/sys/kernel/osrelease", host.release)
        self.put("proc/cmdline", host.cmdline)
        if host.kvm is not None:
            self.put("dev/kvm", 12)
            self.put("sys/module/kvm/parameters/halt_poll_ns", 200_000)
            self.put(f"sys/module/kvm_{host.kvm}/parameters/nested", "Y")
        if host.efficiency:
            efficiency = CpuSet.parse(host.efficiency)
            self.put("sys/devices/cpu_atom/cpus", efficiency)
            self.put("sys/devices/cpu_core/cpus", host.online - efficiency)
        write_devices(self, host)
        for path, text in host.files.items():
            self.put(path, text)
