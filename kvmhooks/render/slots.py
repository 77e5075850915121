"""How many memory modules can be plugged in."""

from __future__ import annotations

from typing import Final

from kvmhooks.placement.model import Plan

DEFAULT: Final = 16
"""Where the spec does not say."""


def slots_of(plan: Plan) -> int:
    """The slots for DIMMs."""
    return plan.spec.memory.slots or DEFAULT
