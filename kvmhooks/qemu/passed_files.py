"""Files that whoever starts QEMU opens for it: QEMU knows them by number.

A macvtap's device, and the taps of a bridge with several queues or vhost, cannot be named on the
command line (``fd`` and ``vhostfd`` of ``-netdev tap``). A file of shared memory could be another
one by the time that QEMU opens its name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
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
    """Return all of them, numbered in order: one for each queue, and one for its vhost."""
    kinds: list[tuple[str, Literal["tap", "vhost"]]] = []
    for at, net in enumerate(plan.spec.net):
        if is_opened(plan, at):
            kinds += [(f"net{at}", "tap")] * (net.queues or 1)
            if plan.hardware.vhost[at]:
                kinds += [(f"net{at}", "vhost")] * (net.queues or 1)
    return tuple(Handle(number, *kind) for number, kind in enumerate(kinds, FIRST))


def is_opened(plan: Plan, at: int) -> bool:
    """Return whether the interface ``at`` is opened by whoever starts QEMU."""
    net = plan.spec.net[at]
    many = bool(plan.hardware.vhost[at]) or (net.queues or 1) > 1
    return net.type == "macvtap" or (net.type == "bridge" and many)


def needs_bridge_helper(plan: Plan) -> bool:
    """Return whether QEMU starts the setuid ``qemu-bridge-helper`` for a port of a bridge."""
    return any(
        net.type == "bridge" and not is_opened(plan, at) for at, net in enumerate(plan.spec.net)
    )


def with_shared_memory(argv: Sequence[str], number: int) -> list[str]:
    """Return QEMU's arguments with the file of shared memory by its number.

    A set of descriptors will not do: QEMU opens the file with open(2) itself (``file_ram_open()``,
    softmmu/physmem.c, since 8.2 system/physmem.c). Below ``/proc/self/fd`` it reaches the open
    file's inode, whose mode alone counts (proc_pid_fd(5)). Raises ``ValueError`` where there is no
    such file.
    """
    words = list(argv)
    for at, (name, word) in enumerate(pairwise(words), 1):
        if name == "-object" and (backend := json.loads(word))["id"] == "shmem-memory":
            path = {"mem-path": f"/proc/self/fd/{number}"}
            words[at] = json.dumps({**backend, **path}, separators=(",", ":"))
            return words
    raise ValueError("shmem-memory: found no such object in QEMU's arguments")
