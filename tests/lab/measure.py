"""Tasks that ran and interrupts, as counts: time inside an emulated server means nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .errors import LabError


@dataclass(frozen=True)
class Ran:
    """A task that was on a CPU."""

    cpu: int
    pid: int
    name: str
    is_kernel: bool | None
    """None for a task that was gone before it could be asked."""
    switches: int
    """The number of times that it got the CPU; 0 if it had it from before and kept it or left."""


@dataclass(frozen=True)
class Interrupts:
    """Interrupts of one source on one CPU."""

    source: str
    """The number of a device's interrupt or the letters of an internal one, such as RES."""
    name: str
    cpu: int
    count: int

    @property
    def is_device(self) -> bool:
        """A device sent it, rather than the CPUs themselves."""
        return self.source.isdigit()


def parse_switches(text: str) -> list[Ran]:
    """Read the output of ``probes/switches.py``."""
    data = json.loads(text)
    if data["lost"]:
        raise LabError(f"the trace buffer was too small: {data['lost']} switches were lost")
    return [Ran(*row) for row in data["ran"]]


def parse_irqs(text: str) -> list[Interrupts]:
    """Read the output of ``probes/irqs.py``."""
    return [Interrupts(*row) for row in json.loads(text)]
