"""The network interfaces."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.argv.json_form import option
from kvmhooks.render.buses import port_of
from kvmhooks.spec.model import Net


def arguments(plan: Plan) -> list[str]:
    """For each interface its backend on the host and its device in the guest."""
    said: list[str] = []
    for index, (net, mac) in enumerate(zip(plan.spec.net, plan.macs, strict=True)):
        name = f"net{index}"
        said += option("netdev", {"id": f"{name}-host", **_backend(net)})
        said += option(
            "device",
            {
                "driver": "virtio-net-pci",
                "id": name,
                "bus": port_of(plan, name).bus,
                "addr": "0x0",
                "netdev": f"{name}-host",
                "mac": mac,
            },
        )
    return said


def _backend(net: Net) -> dict[str, object]:
    """QEMU's ``Netdev`` (qapi/net.json); a tap that exists needs no script to set it up."""
    if net.type == "tap":
        return {"type": "tap", "ifname": net.device, "script": "no", "downscript": "no"}
    if net.type == "bridge":
        return {"type": "bridge", "br": net.device}
    return {"type": "user"}
