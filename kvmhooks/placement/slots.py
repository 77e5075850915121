"""The number of memory modules that can be plugged in."""

from __future__ import annotations

from typing import Final

from kvmhooks.placement.model import Plan

DEFAULT: Final = 16
"""The number where the spec has none."""


def slots_of(plan: Plan) -> int:
    """Return the slots for DIMMs."""
    return plan.spec.memory.slots or DEFAULT
