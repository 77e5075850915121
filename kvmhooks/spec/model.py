"""The description of a VM: the classes that ``vm.toml`` is structured into.

Each field is a key of the file; what stands after it is its meaning for the reader, and the
editor's too: the JSON Schema (``kvmhooks.spec.schema``) is made from these classes. Paths are
absolute here: in the file they are relative to the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, NewType

from attrs import field, frozen

from kvmhooks.values import ByteSize, CpuSet, PciAddress

VmName = NewType("VmName", str)
"""A name that is fit to be a file's name and a libvirt domain's."""
Uuid = NewType("Uuid", str)
MacAddress = NewType("MacAddress", str)
InterfaceName = NewType("InterfaceName", str)
"""A network interface of the host: at most 15 bytes (``IFNAMSIZ`` - 1, linux/if.h)."""
CpuFeature = NewType("CpuFeature", str)
"""A CPU feature, by QEMU's name for it, to add (``+``) or to take away (``-``)."""
CpuModel = NewType("CpuModel", str)
"""``host``, ``max`` or one of QEMU's named models (``qemu-system-x86_64 -cpu help``)."""
MachineType = NewType("MachineType", str)
Number = NewType("Number", int)
"""A whole number that may be 0: other counts start at 1."""
Percentage = NewType("Percentage", int)
"""From 1 to 100."""

TEXT_FORMS: Final[dict[Any, tuple[str, str]]] = {
    VmName: (
        r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}",
        "letters, digits and . _ + -, at most 63, the first a letter or digit",
    ),
    Uuid: (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "a UUID in lower case"),
    MacAddress: (
        r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}",
        'a unicast MAC address in lower case such as "52:54:00:12:34:56"',
    ),
    InterfaceName: (r"[A-Za-z0-9_.+-]{1,15}", "an interface's name of at most 15 characters"),
    CpuFeature: (r"[+-][a-z0-9][a-z0-9._-]*", '"+name" or "-name"'),
    CpuModel: (r"[A-Za-z0-9][A-Za-z0-9_.-]*", '"host", "max" or a model of QEMU'),
    MachineType: (r"q35|pc-q35-[0-9]+[.][0-9]+", '"q35" or a version such as "pc-q35-7.2"'),
}
"""The texts that have a form: its pattern, and what is said where a text has another."""

HugePages = Literal[False, "auto"] | ByteSize
Firmware = Literal["bios"] | Path


@frozen(kw_only=True)
class Machine:
    """The kind of machine."""

    type: MachineType = MachineType("q35")
    """The machine type: q35, or a version of it (pc-q35-7.2)."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """kvm, tcg (QEMU's own, slow), or auto: kvm where it runs Linux, else tcg."""
    emulator: Path | None = None
    """The QEMU to run; by default the system's qemu-system-x86_64."""


@frozen(kw_only=True)
class Boot:
    """What the machine starts."""

    firmware: Firmware = "bios"
    """bios (SeaBIOS), or the path of a ROM image."""
    kernel: Path | None = None
    """A Linux kernel to start without a boot loader."""
    initrd: Path | None = None
    """The initramfs of that kernel."""
    cmdline: str | None = None
    """The command line of that kernel."""


@frozen(kw_only=True)
class Cpu:
    """The virtual CPUs."""

    vcpus: int
    """How many vCPUs: sockets x dies x cores x threads."""
    placement: Literal["dedicated", "shared", "mixed"] = "shared"
    """dedicated: each vCPU has a host CPU to itself; shared: they float over a pool; mixed: those
    that `dedicated` names have one, the others float."""
    dedicated: CpuSet | None = None
    """Of a mixed VM, the vCPUs that have a host CPU each, as a list: "0-1,4"."""
    smt: Literal["share", "require", "isolate"] = "share"
    """Of dedicated vCPUs: share: other VMs may use the siblings of their CPUs; require: whole host
    cores, every thread of them a vCPU; isolate: whole host cores, what the guest does not use of
    them stays idle."""
    kind: Literal["performance", "efficiency"] | None = None
    """Of dedicated vCPUs, the kind of core they need; by default any, performance cores first."""
    realtime: bool = False
    """Whether dedicated vCPUs run with real-time priority (SCHED_FIFO), on CPUs that the kernel
    isolates (isolcpus) if there are any."""
    ratio: int | None = None
    """Of shared vCPUs: at most so many on each CPU of the pool, other VMs' counted; by default
    without limit."""
    iothreads: Number | None = None
    """How many iothreads serve the disks that name none: 0 is QEMU's main loop; by default one for
    each such disk, at most one for two vCPUs."""
    model: CpuModel = CpuModel("host")
    """host, max, or a named model of QEMU. Under tcg host means max."""
    features: tuple[CpuFeature, ...] = ()
    """Features to add (+name) or take away (-name)."""
    sockets: int | None = None
    """Guest sockets; by default one for each guest NUMA cell."""
    dies: int | None = None
    """Guest dies in a socket; by default 1."""
    cores: int | None = None
    """Guest cores in a die; by default what the others leave."""
    threads: int | None = None
    """Guest threads in a core; by default the host's when the vCPUs are dedicated, else 1."""


@frozen(kw_only=True)
class MemoryCell:
    """One NUMA cell of the guest."""

    vcpus: CpuSet = CpuSet()
    """Its vCPUs, as a list: "0-3,8"; by default none: a cell of memory only."""
    size: ByteSize
    """The memory in it."""
    node: Number | None = None
    """The host node that it must be on; by default the planner chooses."""


@frozen(kw_only=True)
class Memory:
    """The guest's memory."""

    size: ByteSize
    """The size of all of it: 512MiB, 4GiB."""
    cells: int | None = None
    """How many guest NUMA cells, all alike; by default one for each host node that is used."""
    cell: tuple[MemoryCell, ...] = ()
    """The guest NUMA cells one by one, where they are not alike."""
    hugepages: HugePages = False
    """The size of the explicit huge pages it is made of (2MiB, 1GiB); auto: the largest that fit;
    or false."""
    allocate: bool = False
    """Whether huge pages that are not there yet may be allocated when the VM starts."""
    mode: Literal["strict", "preferred"] | None = None
    """How memory is bound to its nodes: strict, or preferred; by default strict for dedicated
    vCPUs and for huge pages, else preferred."""
    nodes: CpuSet | None = None
    """The host nodes that the VM may use, as a list: "0-1"; by default all."""


@frozen(kw_only=True)
class Pci:
    """A PCI device of the host that is passed through."""

    address: PciAddress
    """Its address on the host: 0000:3b:00.0."""
    locality: Literal["required", "preferred", "ignore"] = "preferred"
    """Whether the VM must be on the device's node, should be, or may be anywhere."""


@frozen(kw_only=True)
class Disk:
    """A disk."""

    path: Path
    """An image file, or a block device below /dev."""
    format: Literal["raw", "qcow2"] = "raw"
    """The image's format. It is never guessed: a guest could write another header."""
    iothread: int | None = None
    """The number (from 1) of the iothread that serves it; by default the main loop."""
    queues: int | None = None
    """How many virtqueues; by default QEMU's choice."""
    cache: Literal["none", "writeback", "writethrough", "unsafe"] = "none"
    """The host's page cache: none opens with O_DIRECT."""
    readonly: bool = False
    """Whether the guest may not write to it."""

    @property
    def is_block_device(self) -> bool:
        """Whether the path is one of a device: known from it alone, also on another host."""
        return self.path.is_relative_to("/dev")


@frozen(kw_only=True)
class Net:
    """A network interface."""

    type: Literal["user", "tap", "bridge"] = "user"
    """user: QEMU's own NAT; tap: an existing tap device; bridge: a port of a host bridge."""
    device: InterfaceName | None = None
    """The tap device, or the bridge."""
    mac: MacAddress | None = None
    """The guest's address; by default derived from the VM's UUID."""


@frozen(kw_only=True)
class Console:
    """Where the guest's console goes."""

    type: Literal["serial", "virtio", "none"] = "serial"
    """serial: a 16550 port (ttyS0); virtio: a virtio console (hvc0); none."""


@frozen(kw_only=True)
class Guest:
    """What runs inside, as far as kvmhooks is concerned."""

    report: bool = False
    """Whether the guest prints kvmhooks' report of itself, to be compared with the plan."""


@frozen(kw_only=True)
class Shutdown:
    """How the VM is ended when it is asked to stop."""

    timeout: int = 10
    """Seconds that the guest has to power off before QEMU is told to quit."""


@frozen(kw_only=True)
class Isolation:
    """What the VM asks of the host while it runs."""

    exclusive: bool = False
    """Whether its dedicated CPUs are for its vCPUs alone: no task or interrupt of the host."""
    strict: bool = False
    """Whether the VM must not start when any part of this cannot be met."""
    cache_ways: int | None = None
    """How many ways of each L3 cache that it runs on are its own (resctrl); by default none."""
    memory_bandwidth: Percentage | None = None
    """The most memory bandwidth that it may use, in percent (resctrl); by default no limit."""


@frozen(kw_only=True)
class Run:
    """How kvm-launch follows the VM."""

    hang_timeout: int = 300
    """Seconds after which a QEMU that does not answer is killed."""


@frozen(kw_only=True)
class VmSpec:
    """A VM, as a person described it."""

    name: VmName
    """The VM's name: letters, digits and . _ + -, 63 at most."""
    uuid: Uuid | None = None
    """Its UUID; by default derived from the name."""
    machine: Machine = Machine()
    """The kind of machine."""
    boot: Boot = Boot()
    """What the machine starts."""
    cpu: Cpu
    """The virtual CPUs."""
    memory: Memory
    """The guest's memory."""
    disk: tuple[Disk, ...] = ()
    """The disks, in the guest's order."""
    net: tuple[Net, ...] = ()
    """The network interfaces, in the guest's order."""
    pci: tuple[Pci, ...] = ()
    """The host's PCI devices that are passed through, in the guest's order."""
    console: Console = Console()
    """Where the guest's console goes."""
    guest: Guest = Guest()
    """What runs inside."""
    shutdown: Shutdown = Shutdown()
    """How the VM is ended when it is asked to stop."""
    isolation: Isolation = Isolation()
    """What the VM asks of the host while it runs."""
    run: Run = Run()
    """How kvm-launch follows the VM."""
    source: str = field(default="vm.toml", eq=False, metadata={"key": False})
    """The name of the file, for messages; not a key of it."""
