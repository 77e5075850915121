"""Performance and efficiency cores, told apart by evidence.

Sysfs has no ``core_type``. The evidence, from the best to the least:

- the CPUs of each PMU of an Intel hybrid: ``/sys/devices/cpu_core/cpus``, ``cpu_atom`` and, for the
  low-power cores of some, ``cpu_lowpower`` (arch/x86/events/intel/core.c; perf's
  Documentation/intel-hybrid.txt);
- the capacity relative to the best CPU, of 1,024 (``cpu_capacity``, Documentation/scheduler/
  sched-capacity.rst);
- the maximum frequency. Favoured cores of one and the same kind differ by some percent (Turbo
  Boost Max 3.0, preferred cores), dense ones by far more.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvmhooks.host.files.tree import Tree
    from kvmhooks.host.model import Cpu, Kind

_PMUS: Final[tuple[tuple[str, Kind], ...]] = (
    ("cpu_core", "performance"),
    ("cpu_atom", "efficiency"),
    ("cpu_lowpower", "efficiency"),
)

_GAP: Final = 0.85
"""A CPU whose maximum is below this part of the next better one's begins another kind.

The favoured cores of one kind stay within about a tenth of each other; AMD's dense cores and
Intel's efficiency cores reach at most three quarters of the others.
"""


def read_pmus(tree: Tree) -> dict[Kind, CpuSet]:
    """Read the CPUs of each PMU of an Intel hybrid; empty for any other machine."""
    kinds: dict[Kind, CpuSet] = {}
    for name, kind in _PMUS:
        cpus = tree.cpus(f"sys/devices/{name}/cpus")
        if cpus is not None:
            kinds[kind] = kinds.get(kind, CpuSet()) | cpus
    return kinds


def tell_apart(pmus: Mapping[Kind, CpuSet], cpus: Iterable[Cpu]) -> dict[int, Kind]:
    """Give each CPU its kind; nothing where all are of one kind or the evidence does not say."""
    if pmus:
        return {cpu: kind for kind, members in pmus.items() for cpu in members}
    known = list(cpus)
    by_capacity = {cpu.id: cpu.capacity for cpu in known if cpu.capacity}
    by_frequency = {cpu.id: cpu.max_khz for cpu in known if cpu.max_khz}
    return _split(by_capacity) or _split(by_frequency)


def _split(measured: Mapping[int, int]) -> dict[int, Kind]:
    """Part the CPUs at the first gap, the best first; nothing where there is none."""
    for better, worse in pairwise(sorted(set(measured.values()), reverse=True)):
        if worse < better * _GAP:
            return {
                cpu: "performance" if value >= better else "efficiency"
                for cpu, value in measured.items()
            }
    return {}
