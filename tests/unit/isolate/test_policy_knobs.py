"""The knobs of a policy for power, memory, the kernel and disks: set while the VM lives, and
undone.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from kvmhooks.isolate.hook import entry
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import ISOLATION, Vm

if TYPE_CHECKING:
    from pathlib import Path

CPU = "sys/devices/system/cpu"
BEFORE = {
    f"{CPU}/cpufreq/policy0/affected_cpus": "0 1 2 3",
    f"{CPU}/cpufreq/policy0/scaling_governor": "powersave",
    f"{CPU}/cpufreq/policy0/energy_performance_preference": "balance_power",
    f"{CPU}/cpufreq/policy4/affected_cpus": "4 5 6 7",
    f"{CPU}/cpufreq/policy4/scaling_governor": "powersave",
    f"{CPU}/cpufreq/policy4/energy_performance_preference": "balance_power",
    f"{CPU}/cpufreq/boost": "0",
    f"{CPU}/intel_pstate/no_turbo": "1",
    f"{CPU}/cpu1/power/pm_qos_resume_latency_us": "0",
    f"{CPU}/cpu6/power/pm_qos_resume_latency_us": "0",
    f"{CPU}/cpu7/power/pm_qos_resume_latency_us": "100",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/kernel/mm/ksm/run": "1",
    "proc/sys/kernel/numa_balancing": "1",
    "proc/sys/vm/stat_interval": "1",
    "proc/sys/kernel/sched_rt_runtime_us": "950000",
    "proc/sys/kernel/timer_migration": "1",
    "proc/sys/kernel/nmi_watchdog": "1",
    "proc/sys/kernel/watchdog_cpumask": "0-7",
    "proc/sys/kernel/perf_cpu_time_max_percent": "25",
    "proc/sys/kernel/perf_event_max_sample_rate": "100000",
    "sys/module/kvm/parameters/halt_poll_ns": "200000",
    "sys/class/block/sdb/queue/scheduler": "none [mq-deadline]",
    "sys/class/block/sdb/queue/nr_requests": "64",
    "dev/sdb": "",
}
POLICY = (
    '<kvmhooks:isolation exclusive="yes" watchdog="yes"/>'
    '<kvmhooks:power governor="performance" latency="n/a" boost="yes"/>'
    '<kvmhooks:memory thp="never" ksm="0" numa_balancing="0" stat_interval="120"/>'
    '<kvmhooks:kernel rt_runtime="-1" timer_migration="0" nmi_watchdog="0" perf_cpu_limit="0"'
    ' perf_sample_rate="1000"'
    ' halt_poll="0"/><kvmhooks:storage scheduler="none" requests="512"/>'
)
DURING = {
    f"{CPU}/cpufreq/policy4/scaling_governor": "performance",
    f"{CPU}/cpufreq/policy4/energy_performance_preference": "performance",
    f"{CPU}/cpufreq/boost": "1",
    f"{CPU}/intel_pstate/no_turbo": "0",
    f"{CPU}/cpu6/power/pm_qos_resume_latency_us": "n/a",
    f"{CPU}/cpu7/power/pm_qos_resume_latency_us": "n/a",
    "sys/kernel/mm/transparent_hugepage/enabled": "never",
    "sys/kernel/mm/ksm/run": "0",
    "proc/sys/kernel/numa_balancing": "0",
    "proc/sys/vm/stat_interval": "120",
    "proc/sys/kernel/sched_rt_runtime_us": "-1",
    "proc/sys/kernel/timer_migration": "0",
    "proc/sys/kernel/nmi_watchdog": "0",
    "proc/sys/kernel/watchdog_cpumask": "0-5",
    "proc/sys/kernel/perf_cpu_time_max_percent": "0",
    "proc/sys/kernel/perf_event_max_sample_rate": "1000",
    "sys/module/kvm/parameters/halt_poll_ns": "0",
    "sys/class/block/sdb/queue/scheduler": "none",
    "sys/class/block/sdb/queue/nr_requests": "512",
}
AFTER = {  # a plain file does not list the choices again
    "sys/kernel/mm/transparent_hugepage/enabled": "madvise",
    "sys/class/block/sdb/queue/scheduler": "mq-deadline",
}


class Owner(Vm):
    """A VM with a disk."""

    @property
    def xml(self) -> bytes:
        disk = b"<devices><disk type='block'><source dev='/dev/sdb'/></disk></devices></domain>"
        return super().xml.replace(b"</domain>", disk)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plant(Kernel("plain", 8, 2), tmp_path)
    for path, text in BEFORE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    return tmp_path


def run(root: Path, vm: Vm, *operations: str) -> None:
    for operation in operations:
        sub = "end" if operation == "release" else "begin"
        arguments = [vm.name, operation, sub, "-"]
        assert entry.main(arguments, io.BytesIO(vm.xml), io.StringIO(), str(root)) == 0


def values(root: Path) -> dict[str, str]:
    return {path: (root / path).read_text().strip() for path in BEFORE}


def test_all_that_a_policy_asks_for_and_nothing_else(root: Path) -> None:
    """Per CPU only for the VM's own, and afterwards as it was."""
    vm = Owner("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), POLICY)
    run(root, vm, "prepare", "start")
    assert values(root) == BEFORE | DURING
    run(root, vm, "started", "release")
    assert values(root) == BEFORE | AFTER
    assert not (root / "run/kvmhooks/state.json").exists()


def test_a_policy_that_asks_for_nothing_sets_nothing(root: Path) -> None:
    """Each only as a policy asks."""
    run(root, Owner("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), ISOLATION), "prepare", "start")
    assert values(root) == BEFORE


def test_the_first_that_asks_has_the_say_and_the_next_inherits_it(root: Path) -> None:
    """A value for the whole host can be one only."""
    policy = '<kvmhooks:memory stat_interval="{}"/>'
    first = Vm("a", CpuSet(), CpuSet({0}), policy.format(10))
    second = Vm("b", CpuSet(), CpuSet({0}), policy.format(20))
    path = root / "proc/sys/vm/stat_interval"
    run(root, first, "prepare", "start")
    run(root, second, "prepare", "start")
    assert path.read_text().strip() == "10"
    run(root, first, "release")
    assert path.read_text().strip() == "20"
    run(root, second, "release")
    assert path.read_text().strip() == "1"
