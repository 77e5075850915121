"""QEMU's JSON form of ``-object``, ``-blockdev``, ``-device`` and ``-netdev`` (7.2 has all)."""

from __future__ import annotations

import json
from typing import Any


def option(name: str, properties: dict[str, Any]) -> list[str]:
    """``-name {properties}``; properties that are None are left out."""
    said = {key: value for key, value in properties.items() if value is not None}
    return [f"-{name}", json.dumps(said, separators=(",", ":"))]
