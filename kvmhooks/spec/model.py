"""The description of a VM: the classes that ``vm.toml`` is structured into.

Each field is a key of the file; what stands after it is its meaning for the reader, and the
editor's too: the JSON Schema (``kvmhooks.spec.schema``) is made from these classes. Paths are
absolute here: in the file they are relative to the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from kvmhooks.spec.clock import Clock
from kvmhooks.spec.cpu import Cpu
from kvmhooks.spec.device import device
from kvmhooks.spec.devices import (
    Helper,
    Mdev,
    Pci,
)
from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import (
    TEXT_FORMS,
    CellId,
    CpuFeature,
    CpuModel,
    Firmware,
    HugePages,
    InterfaceName,
    MacAddress,
    MachineType,
    Number,
    Percentage,
    UserName,
    Uuid,
    VmName,
)
from kvmhooks.spec.memory import Dimm, Memory, MemoryCell, VirtioMem
from kvmhooks.spec.network import Net
from kvmhooks.spec.profiles import Applied
from kvmhooks.spec.security import Security
from kvmhooks.spec.storage import Disk, Nvme
from kvmhooks.spec.tuning import Policy, Tuning
from kvmhooks.values import ByteSize, PciAddress

if TYPE_CHECKING:
    from kvmhooks.machine.devices.balloon import Balloon
    from kvmhooks.machine.devices.channel import Channel
    from kvmhooks.machine.devices.filesystem import Filesystem
    from kvmhooks.machine.devices.graphics import Graphics
    from kvmhooks.machine.devices.host_usb import HostUsb
    from kvmhooks.machine.devices.input import Input
    from kvmhooks.machine.devices.iommu import Iommu
    from kvmhooks.machine.devices.panic import Panic
    from kvmhooks.machine.devices.rng import Rng
    from kvmhooks.machine.devices.shared_memory import SharedMemory
    from kvmhooks.machine.devices.sound import Sound
    from kvmhooks.machine.devices.tpm import Tpm
    from kvmhooks.machine.devices.usb import Usb
    from kvmhooks.machine.devices.vsock import Vsock
    from kvmhooks.machine.devices.watchdog import Watchdog

__all__ = [
    "TEXT_FORMS",
    "Applied",
    "Boot",
    "CellId",
    "Clock",
    "Console",
    "Cpu",
    "CpuFeature",
    "CpuModel",
    "Dimm",
    "Disk",
    "Firmware",
    "Guest",
    "Helper",
    "HugePages",
    "InterfaceName",
    "Isolation",
    "MacAddress",
    "Machine",
    "MachineType",
    "Mdev",
    "Memory",
    "MemoryCell",
    "Net",
    "Number",
    "Nvme",
    "Pci",
    "Percentage",
    "Policy",
    "Security",
    "Shutdown",
    "Tuning",
    "UserName",
    "Uuid",
    "VirtioMem",
    "VmName",
    "VmSpec",
]


@frozen(kw_only=True)
class Machine:
    """The kind of machine."""

    type: MachineType = MachineType("q35")
    """The machine type: q35, a version of it (pc-q35-7.2), or microvm (kvm-launch only)."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """kvm, tcg (QEMU's own, slow), or auto: kvm where it runs Linux, else tcg."""
    emulator: Path | None = None
    """The QEMU to run; by default the system's qemu-system-x86_64."""
    irqchip: Literal["auto", "on", "split"] = "auto"
    """The place where interrupt controllers are emulated: on: in KVM; split: the I/O APIC in QEMU.
    """
    sandbox: bool = True
    """QEMU is denied the system calls that it has no use for (seccomp)."""
    user: UserName | None = None
    """The user that QEMU runs as; by default whoever starts it, or libvirt's."""


@frozen(kw_only=True)
class Boot:
    """The program that the machine starts."""

    firmware: Firmware = "bios"
    """bios (SeaBIOS), uefi (OVMF), or the path of a ROM image."""
    code: Path | None = enabled_by(on("firmware", "uefi"))
    """OVMF's code; by default Debian's for secure boot or without."""
    variables: Path | None = enabled_by(on("firmware", "uefi"))
    """The file with this VM's own UEFI variables."""
    template: Path | None = enabled_by(on("firmware", "uefi"))
    """The file that it is first copied from; by default Debian's."""
    secure_boot: bool = enabled_by(on("firmware", "uefi"), default=False)
    """UEFI starts only what is signed; the guest cannot write to the firmware's memory."""
    menu: bool = False
    """The firmware waits for a key to choose what to start."""
    kernel: Path | None = None
    """A Linux kernel to start without a boot loader."""
    initrd: Path | None = enabled_by("kernel")
    """The initramfs of that kernel."""
    cmdline: str | None = enabled_by("kernel")
    """The command line of that kernel."""


@frozen(kw_only=True)
class Console:
    """The place that the guest's console goes to."""

    type: Literal["serial", "virtio", "none"] = "serial"
    """serial: a 16550 port (ttyS0); virtio: a virtio console (hvc0); none."""


@frozen(kw_only=True)
class Guest:
    """The programs inside, as far as kvmhooks is concerned."""

    report: bool = enabled_by(on("console.type", "serial", "virtio"), default=False)
    """The guest prints kvmhooks' report of itself, to be compared with the plan."""
    os: Literal["linux", "windows", "other"] = "linux"
    """The operating system: windows wants Hyper-V's interfaces and a clock in local time."""
    agent: bool = False
    """A channel for QEMU's guest agent is there."""


@frozen(kw_only=True)
class Shutdown:
    """The way in which the VM is ended when it is asked to stop."""

    timeout: int = 10
    """Seconds that the guest has to power off before QEMU is told to quit."""


@frozen(kw_only=True)
class Isolation:
    """The VM's claims on the host while it runs."""

    exclusive: bool | None = enabled_by(on("cpu.placement", "dedicated"), means=False)
    """Its dedicated CPUs are for its vCPUs alone: no task or interrupt of the host; by default as
    the administrator says, else not."""
    strict: bool | None = enabled_by(on("exclusive", True), means=False)
    """The VM must not start when any part of this cannot be met; by default as the administrator
    says, else not."""
    cache_ways: int | None = None
    """The number of ways of each L3 cache that it runs on and has alone (resctrl); by default none.
    """
    memory_bandwidth: Percentage | None = None
    """The most memory bandwidth that it may use, in percent (resctrl); by default no limit."""


@frozen(kw_only=True)
class Run:
    """The way in which kvm-launch follows the VM."""

    hang_timeout: int = 300
    """Seconds after which a QEMU that does not answer is killed."""
    ready: Literal["running", "agent"] = "running"
    """The moment when systemd, or whoever waits for kvm-launch --detach, is told that the VM is
    there: once it runs, or once the guest's agent answers.
    """
    restart: Literal["never", "on-failure", "always"] = "never"
    """A VM that ended by itself is started again: always, or unless it powered off."""
    restart_delay: int = enabled_by(on("restart", "on-failure", "always"), default=1)
    """Seconds before a restart; twice as many after each that came to nothing, 300 at the most."""
    writable: tuple[Path, ...] = ()
    """Folders that QEMU may write to, for snapshots and backups (`kvm-launch qmp`): as root
    kvm-launch lets it write to what the VM has alone."""


@frozen(kw_only=True)
class Image:
    """An image that kvm-launch makes when it is not there; it never overwrites one."""

    path: Path
    """The file; a disk names it as well."""
    format: Literal["raw", "qcow2"] = "qcow2"
    """Its format; over a base it is qcow2."""
    size: ByteSize | None = None
    """The size of the disk that the guest sees; by default as the base."""
    base: Path | None = None
    """The image that it begins as; what the guest writes goes to this one only."""
    base_format: Literal["raw", "qcow2"] = enabled_by("base", default="qcow2")
    """The format of the base."""


@frozen(kw_only=True)
class CloudInit:
    """The data for cloud-init in the guest; kvm-launch makes a seed of it at each start."""

    seed: Path
    """The ISO to make, which a disk names as well."""
    user_data: Path | None = None
    """The file with the user data; by default nothing is asked for."""
    meta_data: Path | None = None
    """The file with the meta data; by default the VM's UUID and name."""
    network: Path | None = None
    """The file with the network configuration; by default cloud-init's own."""


@frozen(kw_only=True)
class VmSpec:
    """A VM, as a person described it."""

    name: VmName
    """The VM's name: letters, digits and . _ + -, 63 at most."""
    uuid: Uuid | None = None
    """Its UUID; by default derived from the name."""
    profile: (
        Literal[
            "general",
            "compute",
            "database",
            "web",
            "realtime",
            "desktop",
            "edge",
            "confidential",
        ]
        | None
    ) = None
    """The purpose of the VM: defaults under its own words (`kvmhooks profiles show NAME`)."""
    machine: Machine = Machine()
    """The kind of machine."""
    boot: Boot = Boot()
    """The program that the machine starts."""
    cpu: Cpu
    """The virtual CPUs."""
    memory: Memory
    """The guest's memory."""
    clock: Clock = Clock()
    """The guest's clock and timers."""
    disk: tuple[Disk, ...] = ()
    """The disks, in the guest's order."""
    net: tuple[Net, ...] = ()
    """The network interfaces, in the guest's order."""
    nvme: tuple[Nvme, ...] = ()
    """NVMe controllers of the host that QEMU itself drives, each as a virtio disk."""
    pci: tuple[Pci, ...] = ()
    """PCI devices of the host that the guest gets."""
    mdev: tuple[Mdev, ...] = ()
    """Mediated devices: parts of a device of the host."""
    filesystem: tuple[Filesystem, ...] = device(many=True)
    """Folders of the host that are shared with the guest (virtiofs)."""
    channel: tuple[Channel, ...] = device(many=True)
    """Channels between a program of the guest and a socket of the host."""
    input: tuple[Input, ...] = device(many=True)
    """Keyboards, mice and tablets."""
    host_usb: tuple[HostUsb, ...] = device(many=True)
    """USB devices of the host that the guest gets."""
    usb: Usb | None = device(
        elements=("controller",), of_type="usb", implied_by=("input", "host_usb")
    )
    """The USB controller."""
    graphics: Graphics | None = device(elements=("graphics", "video"))
    """The screen."""
    sound: Sound | None = device(elements=("sound", "audio"))
    """The sound card."""
    vsock: Vsock | None = device()
    """Sockets between the guest and the host."""
    rng: Rng | None = device()
    """Random numbers for the guest."""
    tpm: Tpm | None = device()
    """The TPM."""
    watchdog: Watchdog | None = device()
    """A device that resets a guest that hangs."""
    panic: Panic | None = device()
    """A device by which a guest tells that its kernel has crashed."""
    balloon: Balloon | None = device(elements=("memballoon",))
    """Memory that the guest gives back."""
    iommu: Iommu | None = device()
    """The guest's own IOMMU."""
    shared_memory: SharedMemory | None = device(elements=("shmem",))
    """Memory that the guest shares with a program of the host."""
    security: Security = Security()
    """Encryption of the guest's memory."""
    tuning: Tuning = Tuning()
    """Shares, limits and scheduling on the host."""
    console: Console = Console()
    """The place that the guest's console goes to."""
    guest: Guest = Guest()
    """The programs inside."""
    shutdown: Shutdown = Shutdown()
    """The way in which the VM is ended when it is asked to stop."""
    isolation: Isolation = Isolation()
    """The VM's claims on the host while it runs."""
    policy: Policy = Policy()
    """The settings of the host that the VM asks for while it runs."""
    run: Run = Run()
    """The way in which kvm-launch follows the VM."""
    image: tuple[Image, ...] = ()
    """Images that are made before the first start."""
    helper: tuple[Helper, ...] = ()
    """Programs that kvm-launch starts before QEMU and ends after it."""
    cloud_init: CloudInit | None = None
    """The data for cloud-init in the guest."""
    applied: tuple[Applied, ...] = field(default=(), eq=False, metadata={"key": False})
    """The profile's defaults that can give way; not a key of the file."""
    left_out: tuple[str, ...] = field(default=(), eq=False, metadata={"key": False})
    """The profile's defaults that would do nothing beside the file's words, as sentences."""
    source: str = field(default="vm.toml", eq=False, metadata={"key": False})
    """The name of the file, for messages; not a key of it."""

    def functions(self) -> Iterator[tuple[str, PciAddress]]:
        """Yield each PCI function of the host that it names by its address, with the key."""
        for name in ("pci", "nvme", "net"):
            for index, table in enumerate(getattr(self, name)):
                if table.address is not None:
                    yield f"{name}[{index}].address", table.address

    def repeats(self) -> Iterator[tuple[str, PciAddress, str]]:
        """Yield each such function that another key names before, with that key."""
        named: dict[PciAddress, str] = {}
        for at, address in self.functions():
            if address in named:
                yield at, address, named[address]
            named.setdefault(address, at)
