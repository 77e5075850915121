"""``[tuning]`` as settings of control groups: pure.

Names and ranges are those of the kernel's Documentation/admin-guide/cgroup-v2.rst. A weight counts
beside the groups of other VMs, so it stands at the VM's outermost group, which under systemd is a
unit of its; a limit stands where the VM's processes are, and a quota of one thread at its group.
On v1 each controller has its own names for the same (Documentation/admin-guide/cgroup-v1/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

from kvmhooks.errors import Problem
from kvmhooks.spec.tuning import Bandwidth, IoDevice, Threads, Tuning

OUTER: Final = "outer"
"""The VM's outermost group."""

INNER: Final = "inner"
"""The group of all its processes."""

PERIOD: Final = 100_000
"""The kernel's period of ``cpu.max``, in microseconds."""

HEAVIEST: Final = 10_000

LEGACY_WEIGHT: Final = 1000
"""``BFQ_MAX_WEIGHT`` (block/bfq-iosched.h)."""

PRIORITY: Final = 49
"""The highest of a vCPU that is scheduled in real time."""

DEFAULTS: Final[Mapping[str, str]] = {
    "cpu.weight": "100",
    "io.weight": "default 100",
    "cpu.max": f"max {PERIOD}",
    "memory.max": "max",
    "memory.high": "max",
    "memory.swap.max": "max",
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "cpu.shares": "1024",
    "cpu.cfs_period_us": str(PERIOD),
    "cpu.cfs_quota_us": "-1",
    "memory.limit_in_bytes": "-1",
    "memory.soft_limit_in_bytes": "-1",
    "memory.memsw.limit_in_bytes": "-1",
    "blkio.bfq.weight": "100",
    "blkio.throttle.read_bps_device": "0",
    "blkio.throttle.write_bps_device": "0",
    "blkio.throttle.read_iops_device": "0",
    "blkio.throttle.write_iops_device": "0",
}
"""The values in a group that nobody has set."""

PROPERTIES: Final = {"cpu.weight": "CPUWeight", "io.weight": "IOWeight"}
"""systemd.resource-control(5)."""

_RATES: Final = {
    "rbps": "read_bytes",
    "wbps": "write_bytes",
    "riops": "read_operations",
    "wiops": "write_operations",
}


@frozen
class LimitFile:
    """A file of a group: of ``OUTER``, ``INNER`` or a group of threads such as ``vcpu0``."""

    group: str
    file: str
    device: str = ""
    """The number of the device that a line of the file is for."""

    @property
    def controller(self) -> str:
        """The controller whose file it is."""
        return self.file.partition(".")[0]

    @property
    def default(self) -> str:
        """The value that stands there by itself."""
        return f"{self.device} {DEFAULTS[self.file]}".strip()


Limits = Mapping[LimitFile, str]


def limits_of(
    tuning: Tuning, groups: Iterable[str], number_of: Callable[[Path], str]
) -> dict[LimitFile, str]:
    """Return what has to stand where. ``groups`` are those of the VM's threads.

    ``number_of`` gives the major and minor number of a block device (``259:0``), or raises.
    """
    found = dict(_whole(tuning))
    for device in tuning.io.device:
        if rates := _rates(device):
            number = number_of(device.path)
            found[LimitFile(INNER, "io.max", number)] = f"{number} {rates}"
    kinds = {"vcpu": tuning.vcpus, "emulator": tuning.emulator, "iothread": tuning.iothreads}
    for group in groups:
        quota = _quota(kinds[group.rstrip("0123456789")])
        if quota:
            found[LimitFile(group, "cpu.max")] = quota
    return found


def legacy_limits_of(
    tuning: Tuning, groups: Iterable[str], number_of: Callable[[Path], str]
) -> dict[LimitFile, str]:
    """Return the same on cgroup v1: a VM has one group in each hierarchy there."""
    found: dict[LimitFile, str] = {}
    for place, value in limits_of(tuning, groups, number_of).items():
        for file, its in _legacy(place, value):
            found[LimitFile(place.group, file, place.device)] = f"{place.device} {its}".strip()
    swap, hard = tuning.memory.swap, tuning.memory.hard
    if swap is not None and hard is not None:
        found[LimitFile(INNER, "memory.memsw.limit_in_bytes")] = str(max(int(swap), int(hard)))
    return found


def differences(before: Limits, after: Limits) -> dict[LimitFile, str]:
    """Return what has to be written so that ``after`` holds where ``before`` did."""
    return {
        place: after.get(place, place.default)
        for place in (*after, *(place for place in before if place not in after))
        if before.get(place) != after.get(place)
    }


def problems(tuning: Tuning, *, is_unified: bool = True) -> Iterator[Problem]:
    """Yield the settings of ``[tuning]`` that kvm-launch cannot apply, though libvirt can."""
    if is_unified and (tuning.shares or 0) > HEAVIEST:
        expected = f"{HEAVIEST} at most, as cpu.weight"
        yield Problem("tuning.shares", str(tuning.shares), expected)
    if not is_unified and (tuning.io.weight or 0) > LEGACY_WEIGHT:
        expected = f"{LEGACY_WEIGHT} at most, as blkio.bfq.weight"
        yield Problem("tuning.io.weight", str(tuning.io.weight), expected)
    if tuning.memory.swap is not None and tuning.memory.hard is None:
        expected = "tuning.memory.hard beside it: the kernel limits swap by itself"
        yield Problem("tuning.memory.swap", str(tuning.memory.swap), expected)
    if (tuning.vcpus.priority or 0) > PRIORITY:
        expected = f"{PRIORITY} at most: interrupt threads have 50"
        yield Problem("tuning.vcpus.priority", str(tuning.vcpus.priority), expected)
    for name in ("emulator", "iothreads"):
        scheduler = getattr(tuning, name).scheduler
        if scheduler in {"fifo", "rr"}:
            expected = "other, batch or idle: it shares its CPUs with the host, or --libvirt"
            yield Problem(f"tuning.{name}.scheduler", f'"{scheduler}"', expected)
    for index, device in enumerate(tuning.io.device):
        if device.weight is not None:
            at = f"tuning.io.device[{index}].weight"
            yield Problem(at, str(device.weight), "tuning.io.weight, for all devices, or --libvirt")


def _whole(tuning: Tuning) -> Iterator[tuple[LimitFile, str]]:
    """Yield the settings of the VM as a whole."""
    if tuning.shares is not None:
        yield LimitFile(OUTER, "cpu.weight"), str(tuning.shares)
    if tuning.io.weight is not None:
        yield LimitFile(OUTER, "io.weight"), f"default {tuning.io.weight}"
    if quota := _quota(tuning.total):
        yield LimitFile(INNER, "cpu.max"), quota
    memory = tuning.memory
    if memory.hard is not None:
        yield LimitFile(INNER, "memory.max"), str(int(memory.hard))
    if memory.soft is not None:
        yield LimitFile(INNER, "memory.high"), str(int(memory.soft))
    if memory.swap is not None and memory.hard is not None:
        yield LimitFile(INNER, "memory.swap.max"), str(max(0, int(memory.swap) - int(memory.hard)))


def _legacy(place: LimitFile, value: str) -> Iterator[tuple[str, str]]:
    """Yield a setting of v2 by the names of v1; swap is counted otherwise there."""
    name, rates = place.file, dict(word.split("=") for word in value.split() if "=" in word)
    if name == "cpu.weight":
        yield "cpu.shares", value
    elif name == "cpu.max":
        quota, period = value.split()
        yield "cpu.cfs_period_us", period
        yield "cpu.cfs_quota_us", "-1" if quota == "max" else quota
    elif name == "memory.max":
        yield "memory.limit_in_bytes", value
    elif name == "memory.high":
        yield "memory.soft_limit_in_bytes", value
    elif name == "io.weight":
        yield "blkio.bfq.weight", value.removeprefix("default ")
    for word, rate in rates.items():
        way = "read" if word.startswith("r") else "write"
        unit = "bps" if word.endswith("bps") else "iops"
        yield f"blkio.throttle.{way}_{unit}_device", "0" if rate == "max" else rate


def _quota(limits: Bandwidth | Threads) -> str:
    if limits.quota is None and limits.period is None:
        return ""
    quota = "max" if limits.quota is None else str(limits.quota)
    return f"{quota} {limits.period or PERIOD}"


def _rates(device: IoDevice) -> str:
    given = {word: getattr(device, ours) for word, ours in _RATES.items()}
    words = [f"{word}={'max' if value is None else int(value)}" for word, value in given.items()]
    return " ".join(words) if any(value is not None for value in given.values()) else ""
