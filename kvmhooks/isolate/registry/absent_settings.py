"""The settings of a claim that a host has nothing for: they are told, since no write fails.

A kernel may be built without a part (``CONFIG_KSM``), and a virtual server has no clocks.
"""

from __future__ import annotations

from kvmhooks.isolate.knobs import kernel, memory, power
from kvmhooks.policy import OWN, SETTINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.system.system import System

_CPUS: Final = "sys/devices/system/cpu"
_POLICIES: Final = f"{_CPUS}/cpufreq"

_OF_POLICIES: Final = {
    "power.governor": "scaling_governor",
    "power.epp": "energy_performance_preference",
}
"""The file of each group of CPUs that share a clock."""

_LATENCY: Final = "power/pm_qos_resume_latency_us"
_WATCHDOG: Final = "proc/sys/kernel/watchdog_cpumask"


def warnings(system: System, claims: Iterable[Claim]) -> list[str]:
    """Return a sentence for each setting of a claim that does nothing on this host."""
    return [
        f"{claim.name}: {name} {value} does nothing here: {why}"
        for claim in claims
        for name, value in claim.settings
        for why in _reasons(system, claim, name)
    ]


def _reasons(system: System, claim: Claim, name: str) -> Iterator[str]:
    """Yield why a setting does nothing, if so; not of one that every VM starts from."""
    if SETTINGS[name].needs == OWN and not claim.exclusive:
        if name not in dict(claim.origins):
            yield f"it is of CPUs of the VM's own ({OWN})"
        return
    for path in _missing(system, claim, name):
        yield f"this host has no /{path}"


def _missing(system: System, claim: Claim, name: str) -> Iterator[str]:
    """Yield the file of a setting, if there is none for it."""
    places = [row.path for row in (*kernel.HOST, *memory.HOST, *power.HOST) if row.setting == name]
    if name == "isolation.watchdog":
        places = [_WATCHDOG]
    if name == "power.latency":
        places = [f"{_CPUS}/cpu{cpu}/{_LATENCY}" for cpu in claim.exclusive]
    if name in _OF_POLICIES:
        groups = system.directories(_POLICIES) if system.has(_POLICIES) else []
        places = [f"{_POLICIES}/{group}/{_OF_POLICIES[name]}" for group in groups]
        places = places or [f"{_POLICIES}/policy0/{_OF_POLICIES[name]}"]
    if places and not any(map(system.has, places)):
        yield places[0]
