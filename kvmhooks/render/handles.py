"""Files that whoever starts QEMU opens for it: QEMU knows them by number.

A macvtap's device, and the taps of a bridge with several queues or vhost, cannot be named on the
command line (``fd`` and ``vhostfd`` of ``-netdev tap``).
"""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

from kvmhooks.placement.model import Plan

FIRST: Final = 100
"""Above whatever a starter has open by itself."""


@frozen
class Handle:
    """One open file that QEMU inherits."""

    number: int
    device: str
    """The device that it is for, such as ``net0``."""
    kind: Literal["tap", "vhost"] = "tap"
    """A queue of the tap, or ``/dev/vhost-net`` for it."""


def handles(plan: Plan) -> tuple[Handle, ...]:
    """All of them, numbered in order: one for each queue, and one for its vhost."""
    kinds: list[tuple[str, Literal["tap", "vhost"]]] = []
    for at, net in enumerate(plan.spec.net):
        if is_opened(plan, at):
            kinds += [(f"net{at}", "tap")] * (net.queues or 1)
            if plan.hardware.vhost[at]:
                kinds += [(f"net{at}", "vhost")] * (net.queues or 1)
    return tuple(Handle(number, *kind) for number, kind in enumerate(kinds, FIRST))


def is_opened(plan: Plan, at: int) -> bool:
    """Whether the interface ``at`` is opened by whoever starts QEMU."""
    net = plan.spec.net[at]
    many = bool(plan.hardware.vhost[at]) or (net.queues or 1) > 1
    return net.type == "macvtap" or (net.type == "bridge" and many)


def needs_bridge_helper(plan: Plan) -> bool:
    """Whether QEMU starts the setuid ``qemu-bridge-helper`` to have a port of a bridge."""
    return any(
        net.type == "bridge" and not is_opened(plan, at) for at, net in enumerate(plan.spec.net)
    )
