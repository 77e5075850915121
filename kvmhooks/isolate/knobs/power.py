"""Power: boost, governors, energy preferences and wake-up latencies, as a VM's policy asks."""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.engine.knob import ORDINARY, Knob, PolicyKnob
from kvmhooks.isolate.knobs.host_values import Row
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System

_BOOST: Final = "sys/devices/system/cpu/cpufreq/boost"
_TURBO: Final = "sys/devices/system/cpu/intel_pstate/no_turbo"

HOST: Final = (
    Row("power.boost", _BOOST, "admin-guide/pm/cpufreq.rst", {"yes": "1", "no": "0"}),
    Row("power.boost", _TURBO, "admin-guide/pm/intel_pstate.rst", {"yes": "0", "no": "1"}),
)

_CPUS: Final = "sys/devices/system/cpu"


def knobs(system: System, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield what a claim asks of some CPUs, and what is on record from one that did."""
    yield from _latencies(view, records)
    yield from _policies(system, view, records)


def _latencies(view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield the limits on a CPU's time to wake up: ABI/testing/sysfs-devices-power."""
    for cpu in view.possible if _has(view, records, "power.latency", "latency/") else ():
        key = f"latency/cpu{cpu}"
        cpus = CpuSet((cpu,))
        if key in records or view.requested("power.latency", cpus):
            path = f"{_CPUS}/cpu{cpu}/power/pm_qos_resume_latency_us"
            yield _OwnKnob(key, path, setting="power.latency", cpus=cpus)


def _policies(system: System, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield governor and energy preference, of each group of CPUs that share a clock.

    Documentation/admin-guide/pm/cpufreq.rst («Policy Interface in sysfs») and intel_pstate.rst: the
    governor ``performance`` forces the preference, and refuses another with EBUSY. Of a group whose
    CPUs are all offline nothing can be read (EBUSY, ``show()`` in drivers/cpufreq/cpufreq.c), and
    when one comes back it has the governor that it had: its record stays until then.
    """
    is_needed = _has(view, records, "power.governor", "cpufreq/") or _has(
        view, records, "power.epp", "cpufreq/"
    )
    for name in system.directories(f"{_CPUS}/cpufreq") if is_needed else ():
        path = f"{_CPUS}/cpufreq/{name}"
        try:
            cpus = CpuSet.parse_words(system.read(f"{path}/affected_cpus"))
        except (OSError, ValueFormatError):
            cpus = CpuSet()
        keys = (f"cpufreq/{name}/governor", f"cpufreq/{name}/epp")
        requested = (view.requested("power.governor", cpus), view.requested("power.epp", cpus))
        if any(requested) or any(key in records for key in keys):
            yield _OwnKnob(keys[0], f"{path}/scaling_governor", setting="power.governor", cpus=cpus)
            yield _Preference(
                keys[1], f"{path}/energy_performance_preference", setting="power.epp", cpus=cpus
            )


def _has(view: View, records: Mapping[str, Record], setting: str, prefix: str) -> bool:
    return bool(view.requested(setting)) or any(key.startswith(prefix) for key in records)


class _OwnKnob(PolicyKnob):
    """Only the claims that own one of the CPUs have a say."""

    __slots__ = ("cpus",)

    def __init__(
        self, key: str, path: str, *, setting: str, cpus: CpuSet, order: int = ORDINARY
    ) -> None:
        super().__init__(key, path, setting=setting, order=order)
        self.cpus = cpus

    def target(self, original: str, view: View) -> str:
        return view.requested(self.setting, self.cpus) or original

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.asking(self.setting, self.cpus)


class _Preference(_OwnKnob):
    """The energy preference: it follows the governor."""

    __slots__ = ()

    is_volatile = True

    def __init__(self, key: str, path: str, *, setting: str, cpus: CpuSet) -> None:
        super().__init__(key, path, setting=setting, cpus=cpus, order=ORDINARY + 1)

    def target(self, original: str, view: View) -> str:
        if view.requested("power.governor", self.cpus) == "performance":
            return "performance"
        return super().target(original, view)

    def askers(self, original: str, view: View, system: System) -> list[Held]:
        if view.requested("power.governor", self.cpus) == "performance":
            return view.asking("power.governor", self.cpus)
        return super().askers(original, view, system)

    def is_forced(self, current: str, system: System) -> bool:
        governor = self.path.replace("energy_performance_preference", "scaling_governor")
        return current == "performance" and system.read(governor) == "performance"
