"""The knobs of a policy for power, memory, the kernel and disks: set while the VM lives, and
undone.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from kvmhooks.cli.main import main
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
    return host_with(tmp_path, BEFORE)


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


def foreseen(
    root: Path, folder: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Return what `kvmhooks simulate` warns of for a VM with this policy and one disk."""
    vm = Owner("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy)
    xml = folder / "a.xml"
    xml.write_bytes(vm.xml)
    assert main(["simulate", str(xml), "--root", str(root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    return [f"{row['path']}: {row['value']}" for row in rows if row["phase"] == "warning"]


def host_with(folder: Path, files: dict[str, str]) -> Path:
    """Plant a host of 8 CPUs with these files."""
    plant(Kernel("plain", 8, 2), folder)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text + "\n")
    return folder


def test_simulate_tells_the_settings_that_nothing_here_carries_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each that is asked for, with what the host lacks; on a host that has all it tells nothing."""
    policy = f'{POLICY}<kvmhooks:threads vcpus="fifo:1"/>'.replace(
        'governor="performance"', 'governor="powersave" epp="power"'
    )
    assert foreseen(host_with(tmp_path / "whole", BEFORE), tmp_path, policy, capsys) == []
    bare = host_with(tmp_path / "bare", {"proc/sys/vm/stat_interval": "1"})
    told = foreseen(bare, tmp_path, policy, capsys)
    assert [row.partition(": ")[0] for row in told] == [
        "power.boost", "memory.thp", "memory.ksm", "kernel.rt_runtime",
        "kernel.timer_migration", "kernel.nmi_watchdog", "kernel.perf_cpu_limit",
        "kernel.perf_sample_rate", "kernel.halt_poll", "power.governor", "power.epp",
        "isolation.watchdog", "power.latency", "storage.scheduler", "storage.requests",
    ]  # fmt: skip
    assert told[1] == (
        "memory.thp: left out: this host has no /sys/kernel/mm/transparent_hugepage/enabled"
    )
    assert (
        told[-1] == "storage.requests: left out: none of its disks is a block device of this host"
    )


def test_simulate_tells_the_values_that_the_kernel_does_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A governor or an I/O scheduler that is not offered, and a real-time class without a guard."""
    files = BEFORE | {
        f"{CPU}/cpufreq/policy4/scaling_available_governors": "performance powersave",
        "proc/sys/kernel/sched_rt_runtime_us": "-1",
    }
    policy = (
        '<kvmhooks:isolation exclusive="yes"/><kvmhooks:power governor="schedutil"/>'
        '<kvmhooks:storage scheduler="bfq"/><kvmhooks:threads vcpus="fifo:1"/>'
    )
    told = foreseen(host_with(tmp_path / "root", files), tmp_path, policy, capsys)
    assert told[0].startswith("threads.vcpus: left out: sched_rt_runtime_us is -1: ")
    assert told[1:] == [
        (
            f"cpufreq/policy4/governor: /{CPU}/cpufreq/policy4/scaling_governor: found "
            "'schedutil', expected one of performance, powersave"
        ),
        (
            "disk/sdb/scheduler: /sys/class/block/sdb/queue/scheduler: found 'bfq', expected one "
            "of none, mq-deadline"
        ),
    ]
    assert len(told) == 3


def test_simulate_tells_of_a_vm_that_has_the_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what is one for the host the first claim decides; who asks for the same is content."""
    root = host_with(tmp_path / "root", BEFORE)
    policy = '<kvmhooks:isolation exclusive="yes"/><kvmhooks:memory ksm="{}" thp="never"/>'
    first = Vm("first", CpuSet.parse("4-5"), CpuSet.parse("0-1"), policy=policy.format(2))
    for operation in ("prepare", "start"):
        arguments = [first.name, operation, "begin", "-"]
        assert entry.main(arguments, io.BytesIO(first.xml), io.StringIO(), str(root)) == 0
    assert foreseen(root, tmp_path, policy.format(0), capsys) == [
        "memory.ksm: left out: first, which was first, asks for 2"
    ]
