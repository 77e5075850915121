"""Where the sockets of a VM's helpers are, when libvirt does not choose.

Helpers such as virtiofsd and swtpm are started before QEMU, with these paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kvmhooks.placement.model import Plan

FOLDER: Final = Path("/run/kvmhooks/helpers")


def socket_of(plan: Plan, what: str) -> str:
    """The path of one socket: ``fs0``, ``tpm`` or ``agent``."""
    return str(FOLDER / plan.name / f"{what}.sock")
