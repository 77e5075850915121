"""The frequencies of CPUs, as values. None is «not known», as in ``model``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from kvmhooks.values import CpuSet


@frozen
class FrequencyPolicy:
    """CPUs whose frequency is set together."""

    id: int
    cpus: CpuSet | None = None
    driver: str | None = None
    governor: str | None = None
    epp: str | None = None
    hardware_min_khz: int | None = None
    hardware_max_khz: int | None = None
    base_khz: int | None = None
    min_khz: int | None = None
    max_khz: int | None = None
    ranking: int | None = None
    """AMD's order of preference; the higher the better."""
