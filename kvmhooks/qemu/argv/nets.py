"""The network interfaces."""

from __future__ import annotations

from typing import Any

from kvmhooks.machine.arguments import option
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.argv.plug import plug, where
from kvmhooks.qemu.passed_files import handles, is_opened
from kvmhooks.qemu.sockets import socket_of
from kvmhooks.spec.network import Net


def arguments(plan: Plan) -> list[str]:
    """Return for each interface its backend on the host and its device in the guest."""
    words: list[str] = []
    for index, net in enumerate(plan.spec.net):
        if net.type == "hostdev":
            host = {"driver": "vfio-pci", "host": str(net.address), "id": f"net{index}"}
            words += option("device", {**host, **where(plan, f"net{index}")})
            continue
        words += _chardev(index, net)
        words += option("netdev", {"id": f"net{index}-host", **_backend(plan, index, net)})
        words += option("device", _device(plan, index, net))
    return words


def _device(plan: Plan, index: int, net: Net) -> dict[str, Any]:
    name = f"net{index}"
    common = {"netdev": f"{name}-host", "mac": plan.macs[index]}
    if net.model == "e1000e":
        return {"driver": "e1000e", "id": name, **where(plan, name), **common}
    many = net.queues is not None and net.queues > 1
    return {
        **plug(plan, "virtio-net", name),
        **common,
        "mq": True if many else None,
        # A vector for each queue, one for the control queue, one for changes of configuration.
        "vectors": 2 * (net.queues or 1) + 2 if many else None,
        "rx_queue_size": net.rx_queue_size,
        "tx_queue_size": net.tx_queue_size,
        "host_mtu": net.mtu,
    }


def _chardev(index: int, net: Net) -> list[str]:
    if net.type != "vhost-user":
        return []
    socket = str(net.socket).replace(",", ",,")
    server = ",server=on" if net.server else ""
    return ["-chardev", f"socket,id=net{index}-socket,path={socket}{server}"]


def _backend(plan: Plan, index: int, net: Net) -> dict[str, Any]:
    """Return QEMU's ``Netdev`` (qapi/net.json); a tap that exists needs no script to set it up.

    A bridge's port is made by QEMU's helper, a macvtap's device is opened by whoever starts QEMU.
    """
    vhost = plan.hardware.vhost[index]
    queues = net.queues if net.queues != 1 else None
    if net.type == "tap":
        script = {"script": "no", "downscript": "no"}
        return {"type": "tap", "ifname": net.device, **script, "vhost": vhost, "queues": queues}
    if is_opened(plan, index):
        return {"type": "tap", **_inherited(plan, index), "vhost": vhost}
    address = {"type": "unix", "path": socket_of(plan, f"net{index}")}
    others: dict[str, dict[str, Any]] = {
        "bridge": {"type": "bridge", "br": net.device},
        "vhost-user": {"type": "vhost-user", "chardev": f"net{index}-socket", "queues": queues},
        "vdpa": {"type": "vhost-vdpa", "vhostdev": str(net.path), "queues": queues},
        "passt": {"type": "stream", "addr": address},
        "user": {"type": "user"},
    }
    return others[net.type]


def _inherited(plan: Plan, index: int) -> dict[str, str]:
    """Return the numbers of the files that are opened for an interface."""
    descriptors = {}
    for kind, name in (("tap", "fd"), ("vhost", "vhostfd")):
        numbers = [
            str(each.number)
            for each in handles(plan)
            if (each.device, each.kind) == (f"net{index}", kind)
        ]
        if numbers:
            descriptors[name if len(numbers) == 1 else f"{name}s"] = ":".join(numbers)
    return descriptors
