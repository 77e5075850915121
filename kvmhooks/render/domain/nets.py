"""The network interfaces."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element
from kvmhooks.render.domain.pci import address_of
from kvmhooks.spec.model import Net

_TYPES = {"user": "user", "tap": "ethernet", "bridge": "bridge"}
"""libvirt's words for the spec's."""


def devices(plan: Plan) -> list[Element]:
    """Each interface, on virtio-net."""
    return [
        element(
            "interface",
            {"type": _TYPES[net.type]},
            [
                element("mac", {"address": mac}),
                *_source(net),
                element("model", {"type": "virtio"}),
                address_of(plan, f"net{index}"),
            ],
        )
        for index, (net, mac) in enumerate(zip(plan.spec.net, plan.macs, strict=True))
    ]


def _source(net: Net) -> list[Element]:
    """The bridge, or the tap that exists already and is not libvirt's to make or remove."""
    if net.type == "tap":
        return [element("target", {"dev": net.device, "managed": "no"})]
    if net.type == "bridge":
        return [element("source", {"bridge": net.device})]
    return []
