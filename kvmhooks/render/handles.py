"""Files that whoever starts QEMU opens for it: QEMU knows them by number.

A macvtap's device, and the taps of a bridge with several queues or vhost, cannot be named on the
command line (``fd`` of ``-netdev tap``).
"""

from __future__ import annotations

from typing import Final

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


def handles(plan: Plan) -> tuple[Handle, ...]:
    """All of them, numbered in order: one for each queue."""
    devices = [
        f"net{at}"
        for at, net in enumerate(plan.spec.net)
        if net.type == "macvtap"
        or (net.type == "bridge" and (plan.hardware.vhost[at] or (net.queues or 1) > 1))
        for _ in range(net.queues or 1)
    ]
    return tuple(Handle(number, device) for number, device in enumerate(devices, FIRST))
