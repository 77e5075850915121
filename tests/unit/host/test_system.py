"""The kernel, KVM and what a host hands out: the files as Linux writes them, the values whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from kvmhooks.host import Cpu, HugePages, Kernel, Node, read
from kvmhooks.host.files.flaws import Flaws
from kvmhooks.host.frequency import FrequencyPolicy
from kvmhooks.host.resources import (
    BandwidthAllocation,
    CacheAllocation,
    Cgroup,
    Features,
    IdleState,
    Power,
    Resctrl,
)
from kvmhooks.host.system.cmdline import (
    parse_boot_pages,
    parse_isolation,
    parse_parameters,
)
from kvmhooks.host.system.system import BootPages, Isolation, Processor
from kvmhooks.values import CpuSet
from tests.fakehost import write_host

if TYPE_CHECKING:
    from pathlib import Path

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"


def test_the_command_line_is_taken_apart() -> None:
    """Quotes, repeated names, dashes in names, and what is for init."""
    assert parse_parameters(
        'quiet console=tty0 console=ttyS0 dyndbg="file a.c +p" kvm-intel.nested=1 -- single'
    ) == {
        "quiet": ("",),
        "console": ("tty0", "ttyS0"),
        "dyndbg": ("file a.c +p",),
        "kvm_intel.nested": ("1",),
    }


@pytest.mark.parametrize(
    ("cmdline", "expected", "flaws"),
    [
        ("quiet", Isolation(), ()),
        ("isolcpus=2-3", Isolation(isolcpus=CpuSet({2, 3})), ()),
        (
            "isolcpus=managed_irq,domain,4-N nohz_full=4-7 rcu_nocbs=all irqaffinity=0-1,3",
            Isolation(
                isolcpus=CpuSet({4, 5, 6, 7}),
                isolcpus_flags=("managed_irq", "domain"),
                nohz_full=CpuSet({4, 5, 6, 7}),
                rcu_nocbs=CpuSet(range(8)),
                irqaffinity=CpuSet({0, 1, 3}),
            ),
            (),
        ),
        (
            "nohz_full=most",
            Isolation(),
            ("/proc/cmdline: nohz_full=most is no list of CPUs",),
        ),
    ],
)
def test_what_the_command_line_asks_for(
    cmdline: str, expected: Isolation, flaws: tuple[str, ...]
) -> None:
    """``N`` is the last CPU, ``all`` all of them; what is no list is said."""
    noted = Flaws()
    assert parse_isolation(parse_parameters(cmdline), 7, noted) == expected
    assert noted.told() == flaws


def test_huge_pages_of_the_command_line() -> None:
    """The count belongs to the size before it, and may be given by node."""
    assert parse_boot_pages(
        "hugepages=3 hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=0:5,1:6"
    ) == (
        BootPages(None, 3),
        BootPages(1 << 20, 4),
        BootPages(2048, 5, 0),
        BootPages(2048, 6, 1),
    )


KERNEL_FILES = {
    "proc/version": "Linux version 6.8.0-rt8 (gcc) #1 SMP PREEMPT_RT Thu",
    "proc/sys/vm/swappiness": "60",
    "proc/sys/kernel/numa_balancing": "1",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/kernel/mm/ksm/run": "0",
    f"{CPU}/vulnerabilities/meltdown": "Mitigation: PTI",
}


def test_everything_of_the_kernel_is_read(tmp_path: Path) -> None:
    """Release, command line, clock, switches, vulnerabilities, sysctls."""
    root = write_host(tmp_path, cmdline="quiet", files=KERNEL_FILES)
    assert read(root, {"kernel"}).kernel == Kernel(
        release="6.1.0-18-amd64",
        cmdline="quiet",
        isolated=CpuSet(),
        version="Linux version 6.8.0-rt8 (gcc) #1 SMP PREEMPT_RT Thu",
        parameters={"quiet": ("",)},
        asked=Isolation(),
        boot_pages=(),
        preemption="rt",
        clocksource="tsc",
        clocksources=("tsc", "hpet", "acpi_pm"),
        transparent_hugepages={"enabled": "madvise"},
        ksm={"run": "0"},
        vulnerabilities={"meltdown": "Mitigation: PTI"},
        sysctls={"kernel.numa_balancing": "1", "vm.swappiness": "60"},
    )


@pytest.mark.parametrize(
    ("files", "cmdline", "model"),
    [
        ({"sys/kernel/debug/sched/preempt": "none voluntary (full) lazy"}, "", "full"),
        ({"proc/version": "Linux version 6.12 #1 SMP PREEMPT_DYNAMIC"}, "preempt=none", "none"),
        ({"proc/version": "Linux version 6.12 #1 SMP PREEMPT_DYNAMIC"}, "", None),
        ({"proc/version": "Linux version 6.12 #1 SMP PREEMPT"}, "", "full"),
        ({"proc/version": "Linux version 6.12 #1 SMP"}, "", None),
    ],
)
def test_the_preemption_model(
    tmp_path: Path, files: dict[str, str], cmdline: str, model: str | None
) -> None:
    """debugfs, the command line, or what it was built with; without evidence it is not known."""
    kernel = read(write_host(tmp_path, files=files, cmdline=cmdline), {"kernel"}).kernel
    assert kernel is not None
    assert kernel.preemption == model


def test_the_processor_is_the_first_of_many(tmp_path: Path) -> None:
    """Its maker, its model and its flags."""
    first = (
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
        "model name\t: Intel(R) Xeon(R)\nstepping\t: 8\nmicrocode\t: 0x2b0001b0\n"
        "flags\t\t: fpu vmx rdt_a\nvmx flags\t: vnmi posted_intr\n"
    )
    root = write_host(tmp_path, files={"proc/cpuinfo": f"{first}\n{first.replace('fpu', 'gone')}"})
    assert read(root, {"processor"}).processor == Processor(
        vendor="GenuineIntel",
        model_name="Intel(R) Xeon(R)",
        family=6,
        model=143,
        stepping=8,
        microcode="0x2b0001b0",
        flags=("fpu", "vmx", "rdt_a"),
        vmx_flags=("vnmi", "posted_intr"),
    )


RESCTRL = "sys/fs/resctrl"


def test_resctrl_is_read_with_what_is_free(tmp_path: Path) -> None:
    """Four classes for the cache, eight for bandwidth, one group: two more can be made."""
    files = {
        f"{RESCTRL}/info/L3/cbm_mask": "fff",
        f"{RESCTRL}/info/L3/min_cbm_bits": "1",
        f"{RESCTRL}/info/L3/num_closids": "4",
        f"{RESCTRL}/info/L3/shareable_bits": "c00",
        f"{RESCTRL}/info/MB/num_closids": "8",
        f"{RESCTRL}/info/MB/min_bandwidth": "10",
        f"{RESCTRL}/info/MB/bandwidth_gran": "10",
        f"{RESCTRL}/info/L3_MON/mon_features": "llc_occupancy\nmbm_total_bytes",
        f"{RESCTRL}/schemata": "    L3:0=fff;1=ff0\n    MB:0=100;1=50",
        f"{RESCTRL}/realtime/schemata": "L3:0=00f;1=00f",
        f"{RESCTRL}/mon_groups/watched/tasks": "",
    }
    assert read(write_host(tmp_path, files=files), {"resctrl"}).resctrl == Resctrl(
        mounted=True,
        caches=(
            CacheAllocation(
                resource="L3",
                level=3,
                mask=0xFFF,
                ways=12,
                min_bits=1,
                classes=4,
                shareable=0xC00,
                domains={0: 0xFFF, 1: 0xFF0},
            ),
        ),
        bandwidth=BandwidthAllocation(classes=8, minimum=10, step=10, domains={0: 100, 1: 50}),
        monitoring=("llc_occupancy", "mbm_total_bytes"),
        groups=("realtime",),
        free_classes=2,
    )


def test_resctrl_that_is_not_mounted_is_said(tmp_path: Path) -> None:
    """An empty mount point: the kernel has it, nobody uses it."""
    (tmp_path / RESCTRL).mkdir(parents=True)
    assert read(write_host(tmp_path), {"resctrl"}).resctrl == Resctrl(mounted=False)


V1 = "cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
HYBRID = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {
                "proc/mounts": f"sysfs /sys sysfs rw 0 0\n{V2}",
                "sys/fs/cgroup/cgroup.controllers": "cpuset cpu memory",
                "sys/fs/cgroup/cgroup.subtree_control": "cpu memory",
                "sys/fs/cgroup/machine.slice/cgroup.subtree_control": "cpu",
                "run/systemd/system/x": "",
            },
            Cgroup(
                version=2,
                controllers=("cpuset", "cpu", "memory"),
                mode="unified",
                enabled={"/": ("cpu", "memory"), "/machine.slice": ("cpu",)},
                systemd=True,
                slices=("machine.slice",),
            ),
        ),
        (
            {
                "proc/mounts": V1 + HYBRID,
                "sys/fs/cgroup/unified/cgroup.controllers": "",
                "run/x": "",
            },
            Cgroup(
                version=1,
                controllers=("cpuset",),
                mode="hybrid",
                enabled={"/": ()},
                systemd=False,
                slices=(),
            ),
        ),
        ({"proc/mounts": V1}, Cgroup(version=1, controllers=("cpuset",), mode="legacy")),
        ({}, None),
    ],
    ids=["unified", "hybrid", "legacy", "unknown"],
)
def test_the_control_groups(tmp_path: Path, files: dict[str, str], expected: Cgroup | None) -> None:
    """By what is mounted where; systemd by its directory in ``/run``."""
    assert read(write_host(tmp_path, files=files), {"cgroup"}).cgroup == expected


POLICY = f"{CPU}/cpufreq/policy0"
FREQUENCIES = {
    f"{POLICY}/related_cpus": "0 1",
    f"{POLICY}/scaling_driver": "intel_pstate",
    f"{POLICY}/scaling_governor": "powersave",
    f"{POLICY}/energy_performance_preference": "balance_performance",
    f"{POLICY}/cpuinfo_min_freq": "800000",
    f"{POLICY}/cpuinfo_max_freq": "4200000",
    f"{POLICY}/scaling_min_freq": "900000",
    f"{POLICY}/scaling_max_freq": "4000000",
    f"{POLICY}/base_frequency": "2100000",
    f"{CPU}/intel_pstate/status": "active",
    f"{CPU}/intel_pstate/no_turbo": "0",
    f"{CPU}/cpuidle/current_driver": "intel_idle",
    f"{CPU}/cpuidle/current_governor_ro": "menu",
    f"{CPU}/cpu0/cpuidle/state0/name": "POLL",
    f"{CPU}/cpu0/cpuidle/state0/latency": "0",
    f"{CPU}/cpu0/cpuidle/state0/residency": "0",
    f"{CPU}/cpu0/cpuidle/state0/disable": "1",
    f"{CPU}/cpu0/acpi_cppc/highest_perf": "44",
    f"{CPU}/cpu0/cpu_capacity": "1024",
}


def test_frequencies_and_idle_states(tmp_path: Path) -> None:
    """Of the policy for power, of each CPU for placement."""
    host = read(write_host(tmp_path, cores=2, files=FREQUENCIES), {"power", "cpus"})
    assert host.power == Power(
        policies=(
            FrequencyPolicy(
                id=0,
                cpus=CpuSet({0, 1}),
                driver="intel_pstate",
                governor="powersave",
                epp="balance_performance",
                hardware_min_khz=800_000,
                hardware_max_khz=4_200_000,
                base_khz=2_100_000,
                min_khz=900_000,
                max_khz=4_000_000,
            ),
        ),
        boost=True,
        driver_mode="active",
        idle_driver="intel_idle",
        idle_governor="menu",
        idle_states=(IdleState("POLL", 0, 0, disabled=True),),
    )
    known = Cpu(
        id=1,
        online=True,
        package=0,
        die=0,
        core=1,
        siblings=CpuSet({1}),
        l2=1,
        l3=0,
        node=0,
        max_khz=4_200_000,
        isolated=False,
        base_khz=2_100_000,
    )
    assert host.cpu(1) == known
    ids = {"id": 0, "core": 0, "siblings": CpuSet({0}), "l2": 0}
    assert host.cpu(0) == evolve(known, **ids, capacity=1024, preference=44)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frequencies", "kinds"),
    [
        ([5_000, 4_900, 3_700, 3_700], ["performance"] * 2 + ["efficiency"] * 2),
        ([5_000, 4_900, 4_800, 4_700], [None] * 4),
        ([5_000, 5_000, 5_000, 5_000], [None] * 4),
    ],
    ids=["dense cores", "favoured cores", "all the same"],
)
def test_dense_cores_are_told_by_a_gap_in_frequency(
    tmp_path: Path, frequencies: list[int], kinds: list[str | None]
) -> None:
    """AMD's have no PMU of their own; favoured cores of one kind differ by less."""
    files = {}
    for cpu, mhz in enumerate(frequencies):
        files[f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = f"{mhz}000"
    host = read(write_host(tmp_path, cores=4, files=files), {"cpus"})
    assert [cpu.kind for cpu in host.cpus or ()] == kinds


def test_memory_that_is_best_reached_from_another_node(tmp_path: Path) -> None:
    """A memory-only node with what the firmware's HMAT says of it."""
    access = f"{NODE}/node1/access0/initiators"
    files = {
        f"{access}/node0/x": "",
        f"{access}/read_bandwidth": "40000",
        f"{access}/read_latency": "180",
    }
    root = write_host(tmp_path, node_ids=(0, 1), memory_mib=1, hugepages={}, files=files)
    (root / f"{NODE}/node1/hugepages").mkdir()
    assert read(root, {"nodes"}).node(1) == Node(
        id=1,
        cpus=CpuSet(),
        memory_kib=1024,
        free_kib=1024,
        distances=(20, 10),
        hugepages=(),
        initiators=(0,),
        read_bandwidth_mib=40_000,
        read_latency_ns=180,
    )


def test_features_follow_from_the_other_parts(tmp_path: Path) -> None:
    """Whole, on a host that says little."""
    files = {
        "sys/module/kvm_intel/parameters/ept": "Y",
        "sys/module/kvm_intel/parameters/enable_apicv": "N",
        "proc/1/comm": "systemd",
        "proc/77/comm": "irqbalance",
        "proc/cpuinfo": "flags : fpu rdt_a",
    }
    host = read(write_host(tmp_path, cores=2, threads=2, files=files), {"features"})
    assert host.cpus is None
    assert host.features == Features(
        hugepages=(2048,),
        resctrl=True,
        nested=True,
        nested_paging=True,
        apic_virtualisation=False,
        numa=False,
        smt=True,
        hybrid=False,
        irqbalance=True,
    )


def test_pools_count_their_surplus(tmp_path: Path) -> None:
    """Pages beyond the pool's size are of it for a time only."""
    pool = f"{NODE}/node0/hugepages/hugepages-2048kB/surplus_hugepages"
    root = write_host(tmp_path, hugepages={2048: (9, 3)}, files={pool: "2"})
    assert read(root, {"nodes"}).node(0).hugepages == (HugePages(2048, 9, 3, 2),)
