"""The network interfaces."""

from __future__ import annotations

from kvmhooks.libvirt.xml.pci import address_of, host_address
from kvmhooks.machine.element import Element, element, yes_no
from kvmhooks.placement.model import Plan
from kvmhooks.spec.network import Net

_TYPES = {
    "user": "user",
    "passt": "user",
    "tap": "ethernet",
    "bridge": "bridge",
    "macvtap": "direct",
    "vhost-user": "vhostuser",
    "vdpa": "vdpa",
    "hostdev": "hostdev",
}
"""libvirt's words for the spec's."""


def devices(plan: Plan) -> list[Element]:
    """Return each interface."""
    return [_interface(plan, index, net) for index, net in enumerate(plan.spec.net)]


def _interface(plan: Plan, index: int, net: Net) -> Element:
    is_hostdev = net.type == "hostdev"
    attributes = {"type": _TYPES[net.type], "managed": yes_no(net.managed) if is_hostdev else None}
    children = [element("mac", {"address": plan.macs[index]}), *_source(net)]
    if is_hostdev:
        if net.vlan is not None:
            children.append(element("vlan", children=[element("tag", {"id": net.vlan})]))
    else:
        children.append(element("model", {"type": net.model}))
        driver = _driver(net, vhost=plan.hardware.vhost[index])
        if any(value is not None for value in driver.values()):
            children.append(element("driver", driver))
        if net.mtu is not None:
            children.append(element("mtu", {"size": net.mtu}))
    return element("interface", attributes, [*children, address_of(plan, f"net{index}")])


def _driver(net: Net, *, vhost: bool | None) -> dict[str, object]:
    return {
        "name": None if vhost is None else "vhost" if vhost else "qemu",
        "queues": None if net.queues == 1 else net.queues,
        "rx_queue_size": net.rx_queue_size,
        "tx_queue_size": net.tx_queue_size,
    }


def _source(net: Net) -> list[Element]:
    """Return the other end; a tap that exists already is not libvirt's to make or remove."""
    if net.type == "hostdev" and net.address is not None:
        source = element("source", children=[host_address(net.address, "pci")])
        return [element("driver", {"name": "vfio"}), source]
    if net.type == "tap":
        return [element("target", {"dev": net.device, "managed": "no"})]
    mode = "server" if net.server else "client"
    sources: dict[str, dict[str, object]] = {
        "bridge": {"bridge": net.device},
        "macvtap": {"dev": net.device, "mode": net.mode},
        "vhost-user": {"type": "unix", "path": net.socket, "mode": mode},
        "vdpa": {"dev": net.path},
    }
    if net.type == "passt":
        return [element("backend", {"type": "passt"})]
    return [element("source", sources[net.type])] if net.type in sources else []
