"""The devices beside disks and networks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen

from kvmhooks.spec.forms import (
    BlockName,
    Cid,
    InterfaceName,
    IpAddress,
    MacAddress,
    MdevName,
    Megabits,
    Number,
    PciId,
    PhysicalName,
    Port,
    Tag,
    UsbId,
    UserName,
    Uuid,
    VfChoice,
    VlanId,
)
from kvmhooks.values import ByteSize, PciAddress


@frozen(kw_only=True)
class Sriov:
    """One virtual function of a card that can have several (SR-IOV)."""

    pf: PhysicalName
    """The card, which is the physical function: its address, or its network interface's name."""
    vf: VfChoice = "auto"
    """The number of the function, from 0; auto: the first that is free."""
    pool: int | None = None
    """How many functions the card makes if it has none, by default what this VM needs: it can make
    no more while one is in use."""
    mac: MacAddress | None = None
    """Its address, of which the guest cannot make another."""
    vlan: VlanId | None = None
    """The VLAN that it is in, which the guest does not see."""
    trust: bool | None = None
    """Whether the guest may change its address and see others' packets."""
    spoofchk: bool | None = None
    """Whether packets from another address are dropped."""
    rate: Megabits | None = None
    """How much it may send, in Mbit/s."""


@frozen(kw_only=True)
class Pci:
    """A PCI device of the host that is passed through."""

    address: PciAddress | None = None
    """Its address on the host: 0000:3b:00.0. One of address, id, net, block, iommu_group and
    sriov."""
    id: PciId | None = None
    """Vendor and device, as `lspci -n` has them: 10de:2204."""
    index: Number | None = None
    """Which of those with this id, counted from 0 by address; by default the first that is free."""
    net: InterfaceName | None = None
    """The name of its network interface on the host."""
    block: BlockName | None = None
    """The name of a disk on the host that is its: nvme1n1."""
    iommu_group: Number | None = None
    """All devices of this IOMMU group, bridges aside."""
    sriov: Sriov | None = None
    """A virtual function of a card; it is always kvmhooks that binds it to vfio-pci and back."""
    locality: Literal["required", "preferred", "ignore"] = "preferred"
    """Whether the VM must be on the device's node, should be, or may be anywhere."""
    managed: bool = True
    """Whether libvirt, or kvm-launch, binds it to vfio-pci and back."""
    allow: tuple[
        Literal[
            "mounted",
            "swap",
            "held",
            "route",
            "bridge",
            "console",
            "screen",
            "functions",
            "remapping",
        ],
        ...,
    ] = ()
    """What the host may lose with it (`kvmhooks devices`): a refusal otherwise."""
    rom: Path | None = None
    """A file with its option ROM, instead of its own."""
    rom_bar: bool | None = None
    """Whether the guest sees its option ROM; by default yes."""
    group: Tag | None = None
    """Devices of one group are functions of one device in the guest: a GPU and its sound."""

    @property
    def chosen(self) -> PciAddress:
        """The address; raises ``ValueError`` where no plan has chosen one yet."""
        if self.address is None:
            raise ValueError("a device that is named by something else than its address")
        return self.address


@frozen(kw_only=True)
class Mdev:
    """A mediated device: one that is there, or one that is made while the VM lives."""

    uuid: Uuid | None = None
    """Its UUID below /sys/bus/mdev/devices; by default derived where it has a type."""
    type: MdevName | None = None
    """Its type, as `kvmhooks devices --json` lists them: it is made when the VM starts."""
    parent: PciAddress | None = None
    """The device that it is made of; by default the one that can make the most of the type."""
    display: bool = False
    """Whether it is the guest's screen."""

    @property
    def chosen(self) -> Uuid:
        """The UUID; raises ``ValueError`` where no plan has derived one yet."""
        if self.uuid is None:
            raise ValueError("a mediated device that has no UUID yet")
        return self.uuid


@frozen(kw_only=True)
class Filesystem:
    """A folder of the host that is shared with the guest."""

    path: Path
    """The folder."""
    tag: Tag
    """Its name in the guest: mount -t virtiofs TAG /mnt."""
    queue_size: int | None = None
    """How many requests its queue holds; by default 1024 in libvirt, 128 else."""
    readonly: bool = False
    """Whether the guest may not write to it (libvirt 11.0)."""


@frozen(kw_only=True)
class Channel:
    """A channel between a program of the guest and a socket of the host."""

    name: Tag
    """Its name in the guest: /dev/virtio-ports/NAME."""
    socket: Path
    """The socket on the host, which QEMU makes."""


@frozen(kw_only=True)
class Usb:
    """The USB controller."""

    controller: Literal["auto", "xhci", "none"] = "auto"
    """xhci: USB 3; auto: xhci where something is to be plugged in."""


@frozen(kw_only=True)
class HostUsb:
    """A USB device of the host."""

    id: UsbId
    """Vendor and product, as lsusb shows them."""


@frozen(kw_only=True)
class Input:
    """A keyboard, mouse or tablet."""

    type: Literal["tablet", "mouse", "keyboard", "evdev"] = "tablet"
    """tablet: a pointer that needs not be caught; evdev: a device of the host."""
    bus: Literal["usb", "virtio"] = "usb"
    """How it is attached."""
    path: Path | None = None
    """The device of evdev: /dev/input/by-id/..."""


@frozen(kw_only=True)
class Graphics:
    """The screen."""

    type: Literal["none", "vnc", "spice"] = "none"
    """How it is looked at."""
    video: Literal["auto", "none", "virtio", "vga", "qxl", "bochs", "ramfb"] = "auto"
    """The graphics card; auto: virtio where there is a screen, else none."""
    listen: IpAddress = IpAddress("127.0.0.1")
    """The address of the host on which it is served."""
    port: Port = Port(5900)
    """Its port."""
    heads: int = 1
    """How many monitors a virtio or qxl card has."""


@frozen(kw_only=True)
class Sound:
    """The sound card."""

    model: Literal["none", "ich9", "virtio"] = "none"
    """ich9: as real ones; virtio: QEMU 8.2, libvirt 10.4."""
    backend: Literal["none", "spice", "pipewire", "pulseaudio", "alsa"] = "none"
    """Where it is heard; pipewire: QEMU 8.1, libvirt 9.10."""


@frozen(kw_only=True)
class Vsock:
    """Sockets between the guest and the host."""

    enabled: bool = False
    """Whether there are any."""
    cid: Cid | None = None
    """The guest's address; by default derived from the VM's UUID."""


@frozen(kw_only=True)
class Rng:
    """Random numbers for the guest."""

    source: Literal["none", "urandom", "builtin"] = "none"
    """urandom: the host's /dev/urandom; builtin: QEMU's own, which is the same without a file."""
    rate: ByteSize | None = None
    """How many bytes at most in each period; by default all that is asked for."""
    period: int = 1000
    """The period in milliseconds."""


@frozen(kw_only=True)
class Tpm:
    """The TPM, which swtpm emulates."""

    model: Literal["none", "crb", "tis"] = "none"
    """crb: as TPM 2.0 has it; tis: the older interface."""
    state: Path | None = None
    """The folder with what the TPM knows, which is kept, for kvm-launch; by default below
    /var/lib/kvm-launch, or ~/.local/state/kvm-launch. libvirt has its own."""


@frozen(kw_only=True)
class Helper:
    """A program that kvm-launch starts before QEMU and ends after it: another end of a socket."""

    command: tuple[str, ...]
    """The program, by its whole path, and its arguments; it stays in the foreground."""
    socket: Path | None = None
    """The socket that it makes: QEMU is started when it listens there."""
    user: UserName | None = None
    """Who it is run as; by default as QEMU."""


@frozen(kw_only=True)
class Watchdog:
    """What resets a guest that hangs."""

    model: Literal["none", "i6300esb", "itco"] = "none"
    """i6300esb: a PCI device; itco: the one of q35 itself."""
    action: Literal["reset", "poweroff", "pause", "none", "inject-nmi"] = "reset"
    """What is done then."""


@frozen(kw_only=True)
class Panic:
    """How a guest tells that its kernel has crashed."""

    model: Literal["none", "isa", "pci"] = "none"
    """isa: a port; pci: a PCI device (libvirt 9.1)."""


@frozen(kw_only=True)
class Balloon:
    """Memory that the guest gives back."""

    enabled: bool = False
    """Whether there is a balloon."""
    free_page_reporting: bool = False
    """Whether the guest tells of free pages, so that the host can use them."""
    deflate_on_oom: bool = False
    """Whether it gives memory back to a guest that has none left."""


@frozen(kw_only=True)
class Iommu:
    """The guest's own IOMMU."""

    model: Literal["none", "intel", "virtio"] = "none"
    """intel: with interrupt remapping, which more than 255 vCPUs need; virtio."""
