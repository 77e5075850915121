"""The devices beside disks and networks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen

from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import (
    BlockName,
    InterfaceName,
    MacAddress,
    MdevName,
    Megabits,
    Number,
    PciId,
    PhysicalName,
    Tag,
    UserName,
    Uuid,
    VfChoice,
    VlanId,
)
from kvmhooks.values import PciAddress


@frozen(kw_only=True)
class Sriov:
    """One virtual function of a card that can have several (SR-IOV)."""

    pf: PhysicalName
    """The card, which is the physical function: its address, or its network interface's name."""
    vf: VfChoice = "auto"
    """The number of the function, from 0; auto: the first that is free."""
    pool: int | None = None
    """The number of functions that the card makes if it has none, by default what this VM needs: it
    can make no more while one is in use.
    """
    mac: MacAddress | None = None
    """Its address, of which the guest cannot make another."""
    vlan: VlanId | None = None
    """The VLAN that it is in, which the guest does not see."""
    trust: bool | None = None
    """The guest may change its address and see others' packets."""
    spoofchk: bool | None = None
    """Packets from another address are dropped."""
    rate: Megabits | None = None
    """The most that it may send, in Mbit/s."""


@frozen(kw_only=True)
class Pci:
    """A PCI device of the host that is passed through."""

    address: PciAddress | None = None
    """Its address on the host: 0000:3b:00.0. One of address, id, net, block, iommu_group and
    sriov."""
    id: PciId | None = None
    """Vendor and device, as `lspci -n` has them: 10de:2204."""
    index: Number | None = enabled_by("id")
    """The number of the one among those with this id, from 0 by address; by default the first that
    is free.
    """
    net: InterfaceName | None = None
    """The name of its network interface on the host."""
    block: BlockName | None = None
    """The name of a disk on the host that is its: nvme1n1."""
    iommu_group: Number | None = None
    """All devices of this IOMMU group, bridges aside."""
    sriov: Sriov | None = None
    """A virtual function of a card; it is always kvmhooks that binds it to vfio-pci and back."""
    locality: Literal["required", "preferred", "ignore"] = "preferred"
    """The pull of the device's node: the VM must be on it, should be, or may be anywhere."""
    managed: bool = True
    """libvirt, or kvm-launch, binds it to vfio-pci and back."""
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
    """The uses by the host that may end for it (`kvmhooks devices`): a refusal otherwise."""
    rom: Path | None = None
    """A file with its option ROM, instead of its own."""
    rom_bar: bool | None = None
    """The guest sees its option ROM; by default yes."""
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
    parent: PciAddress | None = enabled_by("type")
    """The device that it is made of; by default the one that can make the most of the type."""
    display: bool = enabled_by(on("graphics.type", "vnc", "spice"), default=False)
    """It is the guest's screen."""

    @property
    def chosen(self) -> Uuid:
        """The UUID; raises ``ValueError`` where no plan has derived one yet."""
        if self.uuid is None:
            raise ValueError("a mediated device that has no UUID yet")
        return self.uuid


@frozen(kw_only=True)
class Helper:
    """A program that kvm-launch starts before QEMU and ends after it: another end of a socket."""

    command: tuple[str, ...]
    """The program, by its whole path, and its arguments; it stays in the foreground."""
    socket: Path | None = None
    """The socket that it makes: QEMU is started when it listens there."""
    user: UserName | None = None
    """The user that runs it; by default QEMU's."""
