"""PCI addresses in names that the kernel gives to files and chips."""

from __future__ import annotations

import re
from typing import Final

from kvmhooks.values import PciAddress

ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.ASCII)
"""An address in ``/sys/bus/pci/devices``; whatever matches can be parsed."""


def last_address(text: str) -> str | None:
    """Return the last address in a text: in a path, the device nearest to its end."""
    found = ADDRESS.findall(text)
    return found[-1] if found else None


def parse_last(text: str) -> PciAddress | None:
    """Return the same, parsed."""
    found = last_address(text)
    return None if found is None else PciAddress.parse(found)
