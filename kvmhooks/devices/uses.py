"""The uses that a host has for its devices, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import frozen

Kind = Literal["mounted", "swap", "held", "route", "bridge", "console", "screen"]


@frozen
class Use:
    """One way in which the host depends on a device."""

    kind: Kind
    name: str
    """The kernel's name of what is used: ``nvme0n1p2``, ``enp3s0f0``, ``card0``."""
    what: str
    """The words for its use, after the name: «is mounted at /»."""
    evidence: str
    """The file that says so."""


@frozen
class Uses:
    """All uses, by what a PCI device brings."""

    disks: Mapping[str, Sequence[Use]]
    """By block device (``nvme0n1``)."""
    networks: Mapping[str, Sequence[Use]]
    """By network interface."""
    displays: Mapping[str, Sequence[Use]]
    """By PCI address, as the kernel writes it."""
    boot_display: Sequence[Use]
    """Of the display on which the firmware started, which sysfs marks with ``boot_vga``."""
