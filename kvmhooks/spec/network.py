"""``[[net]]``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from attrs import frozen

from kvmhooks.spec.forms import InterfaceName, MacAddress, VlanId
from kvmhooks.values import PciAddress


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
    device: InterfaceName | None = None
    """The tap device, the bridge, or the interface below the macvtap."""
    mode: Literal["bridge", "vepa", "private", "passthrough"] = "bridge"
    """The behaviour of a macvtap to others on the same interface."""
    socket: Path | None = None
    """The socket of vhost-user."""
    server: bool = False
    """QEMU makes that socket and waits; else the switch does."""
    path: Path | None = None
    """The device of vdpa: /dev/vhost-vdpa-0."""
    address: PciAddress | None = None
    """The PCI address of the virtual function."""
    managed: bool = True
    """libvirt binds the virtual function to vfio-pci and back."""
    vlan: VlanId | None = None
    """The VLAN of the virtual function."""
    mac: MacAddress | None = None
    """The guest's address; by default derived from the VM's UUID."""
    queues: int | None = None
    """The number of pairs of queues; by default one."""
    vhost: bool | None = None
    """The host's kernel moves the packets; by default where it can."""
    rx_queue_size: int | None = None
    """The number of packets that the receiving queue holds: a power of two from 256 to 1024."""
    tx_queue_size: int | None = None
    """The number of packets that the sending queue holds: a power of two from 256 to 1024."""
    mtu: int | None = None
    """The MTU that the guest is told."""
