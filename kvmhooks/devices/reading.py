"""Read who uses a host's devices now: what of it would be lost with the device.

Told from files, so that a captured tree answers too, but for one question: whether somebody holds a
block device exclusively (an imported ZFS pool shows nowhere else) is asked of the device itself,
with an ``open`` that changes nothing, and on the live host only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmhooks.devices.disks import read_disk_uses
from kvmhooks.devices.displays import read_boot_display, read_display_uses
from kvmhooks.devices.networks import read_network_uses
from kvmhooks.devices.uses import Uses

if TYPE_CHECKING:
    from kvmhooks.host.files.tree import Tree


def read_uses(tree: Tree) -> Uses:
    """Read who uses disks, networks and displays."""
    return Uses(
        disks=read_disk_uses(tree),
        networks=read_network_uses(tree),
        displays=read_display_uses(tree),
        boot_display=read_boot_display(tree),
    )
