"""``[[net]]``."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from attrs import frozen

from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import InterfaceName, MacAddress, VlanId
from kvmhooks.values import PciAddress

_ON_VIRTIO: Final = on("type", "user", "passt", "tap", "bridge", "macvtap", "vhost-user", "vdpa")
"""All but a function of the host's card, which has the queues that it has."""


@frozen(kw_only=True)
class Net:
    """A network interface."""

    type: Literal["user", "passt", "tap", "bridge", "macvtap", "vhost-user", "vdpa", "hostdev"] = (
        "user"
    )
    """user: QEMU's own NAT; passt: the host's addresses, through the program of that name;
    tap: an existing tap device; bridge: a port of a host bridge;
    macvtap: on an interface of the host; vhost-user: a switch in user space; vdpa: hardware that
    speaks virtio; hostdev: a virtual function of the host's network card."""
    model: Literal["virtio", "e1000e"] = "virtio"
    """The model that the guest sees; e1000e needs no driver of its own."""
    device: InterfaceName | None = enabled_by(on("type", "tap", "bridge", "macvtap"))
    """The tap device, the bridge, or the interface below the macvtap."""
    mode: Literal["bridge", "vepa", "private", "passthrough"] = enabled_by(
        on("type", "macvtap"), default="bridge"
    )
    """The behaviour of a macvtap to others on the same interface."""
    socket: Path | None = enabled_by(on("type", "vhost-user"))
    """The socket of vhost-user."""
    server: bool = enabled_by(on("type", "vhost-user"), default=False)
    """QEMU makes that socket and waits; else the switch does."""
    path: Path | None = enabled_by(on("type", "vdpa"))
    """The device of vdpa: /dev/vhost-vdpa-0."""
    address: PciAddress | None = enabled_by(on("type", "hostdev"))
    """The PCI address of the virtual function."""
    managed: bool = enabled_by(on("type", "hostdev"), default=True)
    """libvirt binds the virtual function to vfio-pci and back."""
    vlan: VlanId | None = enabled_by(on("type", "hostdev"))
    """The VLAN of the virtual function."""
    mac: MacAddress | None = None
    """The guest's address; by default derived from the VM's UUID."""
    queues: int | None = enabled_by(
        on("type", "tap", "bridge", "macvtap", "vhost-user", "vdpa"), on("model", "virtio")
    )
    """The number of pairs of queues; by default one."""
    vhost: bool | None = enabled_by(on("type", "tap", "bridge", "macvtap"), on("model", "virtio"))
    """The host's kernel moves the packets; by default where it can."""
    rx_queue_size: int | None = enabled_by(_ON_VIRTIO, on("model", "virtio"))
    """The number of packets that the receiving queue holds: a power of two from 256 to 1024."""
    tx_queue_size: int | None = enabled_by(_ON_VIRTIO, on("model", "virtio"))
    """The number of packets that the sending queue holds: a power of two from 256 to 1024."""
    mtu: int | None = enabled_by(_ON_VIRTIO, on("model", "virtio"))
    """The MTU that the guest is told."""
