"""The files of UEFI firmware."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attrs import frozen

from kvmhooks.spec.model import VmSpec

OVMF: Final = Path("/usr/share/OVMF")
"""Debian's (package ovmf); its ``.ms`` images have Microsoft's keys enrolled."""


@frozen
class Firmware:
    """OVMF: its code, this VM's variables, and what those are first copied from."""

    code: Path
    variables: Path
    template: Path


def firmware_of(spec: VmSpec) -> Firmware | None:
    """Return the files, as the spec names them or as Debian has them; None without UEFI."""
    boot = spec.boot
    if boot.firmware != "uefi" or boot.variables is None:
        return None
    kind = ".ms" if boot.secure_boot else ""
    return Firmware(
        boot.code or OVMF / f"OVMF_CODE_4M{kind}.fd",
        boot.variables,
        boot.template or OVMF / f"OVMF_VARS_4M{kind}.fd",
    )
