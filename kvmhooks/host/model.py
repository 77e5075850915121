"""A host as values: what there is, who shares what with whom.

Every number is the kernel's own. None means «not known»: the kernel does not say, the captured tree
does not hold it, what it says is impossible (then ``Host.warnings`` says so), or that part was not
asked for. It never means zero or «none»: that is the empty set, the empty tuple or 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import field, frozen

from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.host.bus.devices import Irq, PciDevice
    from kvmhooks.host.resources import Cgroup, Features, Iommu, Power, Resctrl
    from kvmhooks.host.system.system import Kernel, Kvm, Processor

Kind = Literal["performance", "efficiency"]

PARTS: Final = (
    "cpus",
    "nodes",
    "pci",
    "irqs",
    "kernel",
    "kvm",
    "cgroup",
    "resctrl",
    "power",
    "processor",
    "iommu",
    "features",
)
"""The parts that ``read`` can be asked for."""

PLANNED: Final = ("cpus", "nodes", "kernel", "kvm")
"""The parts that a plan looks at."""


@frozen
class Cpu:
    """One logical CPU (a hardware thread) that is present, online or not.

    The kernel tells nothing of the topology of a CPU that is offline.
    """

    id: int
    online: bool | None = None
    package: int | None = None
    die: int | None = None
    """Unique only within a package."""
    cluster: int | None = None
    """Unique only within a package; on x86 the CPUs that share an L2."""
    core: int | None = None
    """Unique only within a package (and, before Linux 5.3, within a die of one)."""
    siblings: CpuSet | None = None
    """All online threads of the same core, this one included."""
    l2: int | None = None
    """The id of its entry in ``Host.caches`` of level 2 that is not for instructions."""
    l3: int | None = None
    """The same of level 3."""
    node: int | None = None
    kind: Kind | None = None
    """None where all are of one kind."""
    max_khz: int | None = None
    isolated: bool | None = None
    """Not load-balanced since boot (``isolcpus=domain``)."""
    nohz_full: bool | None = None
    base_khz: int | None = None
    capacity: int | None = None
    """Relative to the best CPU, which has 1,024; most machines do not tell."""
    preference: int | None = None
    """The higher, the sooner the scheduler takes it: AMD's ranking of preferred cores, or the
    highest performance of ACPI CPPC. None where none is told."""


@frozen
class Cache:
    """One cache and the online CPUs that share it."""

    level: int
    type: str
    """``Data``, ``Instruction`` or ``Unified``."""
    id: int
    """Unique among those of one level and type.

    It is the kernel's, which resctrl uses too, unless the kernel gives none (``numbered_by_cpu``).
    """
    size_kib: int | None
    cpus: CpuSet
    numbered_by_cpu: bool = False
    """The kernel has no usable ids for this level and type: the id is the lowest CPU's number."""


@frozen
class HugePages:
    """The pool of one size on one node."""

    size_kib: int
    total: int | None
    free: int | None
    surplus: int | None = None
    """Of ``total``: beyond the pool's size, and gone when they are given back."""


@frozen
class Node:
    """One NUMA node that is online; one without CPUs has memory only."""

    id: int
    cpus: CpuSet | None = None
    memory_kib: int | None = None
    free_kib: int | None = None
    distances: tuple[int, ...] | None = None
    """To each node, in the order of ``Host.nodes``; 10 is local."""
    hugepages: tuple[HugePages, ...] | None = None
    initiators: tuple[int, ...] | None = None
    """The nodes whose CPUs reach this memory best, where the firmware has an HMAT."""
    read_bandwidth_mib: int | None = None
    """From the initiators, per second."""
    write_bandwidth_mib: int | None = None
    read_latency_ns: int | None = None
    write_latency_ns: int | None = None


@frozen
class Memory:
    """The memory of the whole host, which is known also where there are no nodes."""

    total_kib: int | None = None
    free_kib: int | None = None
    available_kib: int | None = None
    hugepages: tuple[HugePages, ...] | None = None


@frozen
class Host:
    """Everything that was read.

    ``nodes`` is None on a kernel without NUMA (no ``/sys/devices/system/node``): there is no
    node 0 to bind anything to, not even a single one. Its CPUs then have no node, and what memory
    there is stands in ``memory``. A node that is offline is in ``offline_nodes``.
    """

    cpus: tuple[Cpu, ...] | None = None
    caches: tuple[Cache, ...] | None = None
    nodes: tuple[Node, ...] | None = None
    offline_nodes: CpuSet | None = None
    """Those that memory could be added to; they have no CPUs and nothing to be read."""
    memory: Memory | None = None
    pci: tuple[PciDevice, ...] | None = None
    irqs: tuple[Irq, ...] | None = None
    kernel: Kernel | None = None
    kvm: Kvm | None = None
    cgroup: Cgroup | None = None
    features: Features | None = None
    resctrl: Resctrl | None = None
    power: Power | None = None
    processor: Processor | None = None
    iommu: Iommu | None = None
    warnings: tuple[str, ...] = ()
    _cpu_by_id: Mapping[int, Cpu] = field(init=False, repr=False, eq=False)
    _node_by_id: Mapping[int, Node] = field(init=False, repr=False, eq=False)

    @_cpu_by_id.default
    def _index_cpus(self) -> Mapping[int, Cpu]:
        return {cpu.id: cpu for cpu in self.cpus or ()}

    @_node_by_id.default
    def _index_nodes(self) -> Mapping[int, Node]:
        return {node.id: node for node in self.nodes or ()}

    @property
    def present(self) -> CpuSet:
        """All CPUs that were found, online or not."""
        return CpuSet(self._cpu_by_id)

    @property
    def online(self) -> CpuSet:
        """The CPUs on which something can run."""
        return CpuSet(cpu.id for cpu in self.cpus or () if cpu.online)

    def cpu(self, number: int) -> Cpu:
        """Return one CPU by its number. Raises ``KeyError``."""
        return self._cpu_by_id[number]

    def node(self, number: int) -> Node:
        """Return one node by its number. Raises ``KeyError``."""
        return self._node_by_id[number]

    def core_of(self, cpu: int) -> CpuSet:
        """Return the CPU with its siblings; it alone where the siblings are not known."""
        return self._cpu_by_id[cpu].siblings or CpuSet((cpu,))
