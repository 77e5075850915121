"""The places of the sockets of a VM's helpers, such as virtiofsd, where libvirt starts none."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SOCKETS: Final = Path("/run/kvmhooks/helpers")
"""The folder of the sockets of VMs' helpers."""


def helper_socket(vm: str, what: str) -> str:
    """Return the path of the socket of a helper of a VM."""
    return str(SOCKETS / vm / f"{what}.sock")
