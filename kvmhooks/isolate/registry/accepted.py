"""The values that a kernel takes in a file, as far as the host tells them before a write.

A rehearsal makes no write that the kernel could refuse, so it looks at what the kernel looks at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmhooks.errors import IsolationError

if TYPE_CHECKING:
    from kvmhooks.isolate.system.system import System

_BESIDE: Final = {
    "scaling_governor": "scaling_available_governors",
    "energy_performance_preference": "energy_performance_available_preferences",
}
"""The files whose choices stand in another one beside them (admin-guide/pm/cpufreq.rst)."""

_MOST_PREFERENCE: Final = 255
"""A number is taken for a preference too (admin-guide/pm/intel_pstate.rst, «Energy vs Performance
Hints»)."""

_MODULES: Final = {"scaling_governor": "cpufreq_{}", "scheduler": "{}-iosched"}
"""The modules that the kernel asks for when it has no governor (``cpufreq_parse_governor()``,
drivers/cpufreq/cpufreq.c) or I/O scheduler (``elevator_change()``, block/elevator.c) of a name."""

_WITHOUT_MODULES: Final = ("intel_pstate", "amd-pstate-epp")
"""The drivers that choose the clock themselves: they know two governors
(``cpufreq_parse_policy()``)."""

_MOST: Final = {"proc/sys/kernel/perf_cpu_time_max_percent": "100"}
_MOST_BESIDE: Final = {
    "proc/sys/kernel/sched_rt_runtime_us": "proc/sys/kernel/sched_rt_period_us",
}
"""The highest numbers: kernel/events/core.c; ``sched_rt_global_validate()``, kernel/sched/rt.c."""


def check(system: System, path: str, text: str) -> None:
    """Refuse a value that the kernel would. Raises ``IsolationError``, or ``OSError``."""
    folder, _, name = path.rpartition("/")
    choices = _choices(system, path)
    if choices and text not in choices and not _is_taken(system, folder, name, text):
        raise IsolationError(f"/{path}: found {text!r}, expected one of {', '.join(choices)}")
    most = _MOST.get(path) or _number(system, _MOST_BESIDE.get(path, ""))
    if most and text.isdecimal() and int(text) > int(most):
        raise IsolationError(f"/{path}: found {text}, expected at most {most}")


def _choices(system: System, path: str) -> list[str]:
    """Return the values of which one may stand in a file; none where any may."""
    folder, _, name = path.rpartition("/")
    beside = f"{folder}/{_BESIDE[name]}" if name in _BESIDE else ""
    if beside:
        return system.read(beside).split() if system.has(beside) else []
    text = system.read(path)
    is_list = text.count("[") == text.count("]") == 1
    return text.replace("[", "").replace("]", "").split() if is_list else []


def _is_taken(system: System, folder: str, name: str, text: str) -> bool:
    """Return whether a value is taken that is not among the choices."""
    if name == "energy_performance_preference":
        return text.isdecimal() and int(text) <= _MOST_PREFERENCE
    if name not in _MODULES or _driver(system, folder) in _WITHOUT_MODULES:
        return False
    wanted = {_plain(_MODULES[name].format(text)), _plain(text)}
    release = system.read("proc/sys/kernel/osrelease")
    modules = f"lib/modules/{release}/modules.dep"
    lines = system.lines(modules) if system.has(modules) else []
    files = (line.partition(":")[0].rpartition("/")[2].partition(".")[0] for line in lines)
    return any(_plain(file) in wanted for file in files)


def _plain(module: str) -> str:
    return module.replace("-", "_")


def _driver(system: System, folder: str) -> str:
    path = f"{folder}/scaling_driver"
    return system.read(path) if system.has(path) else ""


def _number(system: System, path: str) -> str:
    text = system.read(path) if path and system.has(path) else ""
    return text if text.isdecimal() else ""
