"""What is set only as a VM's policy asks: power, memory, the kernel's clocks and limits, disks."""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.knob import ORDINARY, Knob, WishKnob
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import View
    from kvmhooks.isolate.state import Record


class _Row:
    __slots__ = ("path", "setting", "source", "spelling")

    def __init__(
        self, setting: str, path: str, source: str, spelling: Mapping[str, str] | None = None
    ) -> None:
        self.setting = setting
        self.path = path
        self.source = source
        """Where the kernel describes it."""
        self.spelling = spelling


_BOOST: Final = "sys/devices/system/cpu/cpufreq/boost"
_TURBO: Final = "sys/devices/system/cpu/intel_pstate/no_turbo"

HOST: Final = (
    _Row("power.boost", _BOOST, "admin-guide/pm/cpufreq.rst", {"yes": "1", "no": "0"}),
    _Row("power.boost", _TURBO, "admin-guide/pm/intel_pstate.rst", {"yes": "0", "no": "1"}),
    _Row(
        "memory.thp", "sys/kernel/mm/transparent_hugepage/enabled", "admin-guide/mm/transhuge.rst"
    ),
    _Row("memory.ksm", "sys/kernel/mm/ksm/run", "admin-guide/mm/ksm.rst"),
    _Row(
        "memory.numa_balancing", "proc/sys/kernel/numa_balancing", "admin-guide/sysctl/kernel.rst"
    ),
    _Row("memory.stat_interval", "proc/sys/vm/stat_interval", "admin-guide/sysctl/vm.rst"),
    _Row(
        "kernel.rt_runtime", "proc/sys/kernel/sched_rt_runtime_us", "scheduler/sched-rt-group.rst"
    ),
    _Row("kernel.timer_migration", "proc/sys/kernel/timer_migration", "kernel/sysctl.c"),
    _Row("kernel.nmi_watchdog", "proc/sys/kernel/nmi_watchdog", "admin-guide/sysctl/kernel.rst"),
    _Row(
        "kernel.perf_cpu_limit",
        "proc/sys/kernel/perf_cpu_time_max_percent",
        "admin-guide/sysctl/kernel.rst",
    ),
    _Row(
        "kernel.perf_sample_rate",
        "proc/sys/kernel/perf_event_max_sample_rate",
        "admin-guide/sysctl/kernel.rst",
    ),
    _Row("kernel.halt_poll", "sys/module/kvm/parameters/halt_poll_ns", "virt/kvm/halt-polling.rst"),
)
"""One value for the whole host: the first claim that asks has the say."""

_CPUS: Final = "sys/devices/system/cpu"


def knobs(door: Door, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """What a claim asks for, and what is on record from one that did."""
    for row in HOST:
        key = f"{row.setting}/{row.path.rsplit('/', 1)[-1]}"
        if key in records or view.wish(row.setting):
            yield WishKnob(key, row.path, setting=row.setting, spelling=row.spelling)
    yield from _latencies(view, records)
    yield from _policies(door, view, records)
    yield from _disks(door, view, records)


def _latencies(view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """How long a CPU may take to wake up: ABI/testing/sysfs-devices-power."""
    for cpu in view.possible if _has(view, records, "power.latency", "latency/") else ():
        key = f"latency/cpu{cpu}"
        cpus = CpuSet((cpu,))
        if key in records or view.wish("power.latency", cpus):
            path = f"{_CPUS}/cpu{cpu}/power/pm_qos_resume_latency_us"
            yield _OwnKnob(key, path, setting="power.latency", cpus=cpus)


def _policies(door: Door, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Governor and energy preference, of each group of CPUs that share a clock.

    Documentation/admin-guide/pm/cpufreq.rst («Policy Interface in sysfs») and intel_pstate.rst: the
    governor ``performance`` forces the preference, and refuses another with EBUSY.
    """
    is_needed = _has(view, records, "power.governor", "cpufreq/") or _has(
        view, records, "power.epp", "cpufreq/"
    )
    for name in door.directories(f"{_CPUS}/cpufreq") if is_needed else ():
        path = f"{_CPUS}/cpufreq/{name}"
        try:
            cpus = CpuSet.parse(door.read(f"{path}/affected_cpus").replace(" ", ","))
        except (OSError, ValueFormatError):
            continue
        keys = (f"cpufreq/{name}/governor", f"cpufreq/{name}/epp")
        wishes = (view.wish("power.governor", cpus), view.wish("power.epp", cpus))
        if any(wishes) or any(key in records for key in keys):
            yield _OwnKnob(keys[0], f"{path}/scaling_governor", setting="power.governor", cpus=cpus)
            yield _Preference(
                keys[1], f"{path}/energy_performance_preference", setting="power.epp", cpus=cpus
            )


def _disks(door: Door, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """The I/O scheduler and the queue's depth of the VMs' disks: ABI/stable/sysfs-block."""
    devices = {disk: one for one in view.held for disk in one.claim.disks}
    names = {door.block_device(disk): disk for disk in devices}
    for key in records:
        if key.startswith("disk/"):
            names.setdefault(key.split("/")[1], "")
    for name in sorted(names):
        if name:
            queue = f"sys/class/block/{name}/queue"
            yield _DiskKnob(
                f"disk/{name}/scheduler", f"{queue}/scheduler", setting="storage.scheduler",
                disk=names[name],
            )  # fmt: skip
            yield _Depth(
                f"disk/{name}/requests", f"{queue}/nr_requests", setting="storage.requests",
                disk=names[name], follows=bool(view.wish("storage.scheduler")),
            )  # fmt: skip


def _has(view: View, records: Mapping[str, Record], setting: str, prefix: str) -> bool:
    return bool(view.wish(setting)) or any(key.startswith(prefix) for key in records)


class _OwnKnob(WishKnob):
    """Only the claims that own one of the CPUs have a say."""

    __slots__ = ("cpus",)

    def __init__(
        self, key: str, path: str, *, setting: str, cpus: CpuSet, order: int = ORDINARY
    ) -> None:
        super().__init__(key, path, setting=setting, order=order)
        self.cpus = cpus

    def target(self, original: str, view: View) -> str:
        return view.wish(self.setting, self.cpus) or original


class _Preference(_OwnKnob):
    """The energy preference: it follows the governor."""

    __slots__ = ()

    is_volatile = True

    def __init__(self, key: str, path: str, *, setting: str, cpus: CpuSet) -> None:
        super().__init__(key, path, setting=setting, cpus=cpus, order=ORDINARY + 1)

    def target(self, original: str, view: View) -> str:
        if view.wish("power.governor", self.cpus) == "performance":
            return "performance"
        return super().target(original, view)

    def is_forced(self, current: str, door: Door) -> bool:
        governor = self.path.replace("energy_performance_preference", "scaling_governor")
        return current == "performance" and door.read(governor) == "performance"


class _DiskKnob(WishKnob):
    """Only the claims whose disk it is have a say."""

    __slots__ = ("disk",)

    def __init__(
        self, key: str, path: str, *, setting: str, disk: str, order: int = ORDINARY
    ) -> None:
        super().__init__(key, path, setting=setting, order=order)
        self.disk = disk

    def target(self, original: str, view: View) -> str:
        for one in view.held:
            if self.disk in one.claim.disks and one.claim.setting(self.setting):
                return one.claim.setting(self.setting)
        return original


class _Depth(_DiskKnob):
    """The depth of the queue: a change of the scheduler sets it to that scheduler's default."""

    __slots__ = ("follows",)

    is_volatile = True

    def __init__(self, key: str, path: str, *, setting: str, disk: str, follows: bool) -> None:
        super().__init__(key, path, setting=setting, disk=disk, order=ORDINARY + 1)
        self.follows = follows
        """Whether we have set the scheduler, so that the kernel has set this."""

    def is_forced(self, current: str, door: Door) -> bool:  # noqa: ARG002 -- the base's
        return self.follows
