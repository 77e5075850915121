"""Both launchers alike: the same file, the same host, and the same host after.

libvirt's VM is the XML of the plan, which its hook reads; kvm-launch's is claimed from the plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Plan, plan
from kvmhooks.policy import SETTINGS
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.structure import structure_table
from kvmhooks.spec.tuning import Policy
from kvmhooks.values import CpuSet, union
from tests.isolate_model.launched import LaunchedVm, LaunchKernel
from tests.isolate_model.world import Vm, World, effective_state
from tests.laws.strategies import settings_tables
from tests.laws.test_every_instruction import FLAVOURS
from tests.laws.test_launched_vms import host

CPU = "sys/devices/system/cpu"
BEFORE = {
    **{
        f"{CPU}/cpufreq/policy{cpu}/{name}": value
        for cpu in range(16)
        for name, value in (
            ("affected_cpus", str(cpu)),
            ("scaling_governor", "powersave"),
            ("energy_performance_preference", "balance_power"),
        )
    },
    **{f"{CPU}/cpu{cpu}/power/pm_qos_resume_latency_us": "7" for cpu in range(16)},
    f"{CPU}/cpufreq/boost": "0",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/kernel/mm/ksm/run": "1",
    "proc/sys/kernel/numa_balancing": "1",
    "proc/sys/vm/stat_interval": "1",
    "proc/sys/kernel/sched_rt_runtime_us": "950000",
    "proc/sys/kernel/timer_migration": "1",
    "proc/sys/kernel/nmi_watchdog": "1",
    "proc/sys/kernel/watchdog_cpumask": "0-15",
    "proc/sys/kernel/perf_cpu_time_max_percent": "25",
    "proc/sys/kernel/perf_event_max_sample_rate": "100000",
    "sys/module/kvm/parameters/halt_poll_ns": "200000",
}
"""Every file that a setting is about, but those of disks."""

DRAWN = [
    name
    for name, setting in SETTINGS.items()
    if not (setting.word or name.startswith("storage.") or setting.needs == "memory.hugepages")
]
FREE = [name for name in DRAWN if not SETTINGS[name].needs]


class Described(Vm):
    """A VM whose XML is that of a plan."""

    def __init__(self, made: Plan) -> None:
        super().__init__(made.name, CpuSet(), made.emulator)
        self.uuid = made.uuid
        self.cpus = made.exclusive or union(pin.cpus for pin in made.vcpus)
        self._xml = domain_xml(made).encode()

    @property
    def xml(self) -> bytes:
        return self._xml


def spec_of(tables: dict[str, Any], *, is_exclusive: bool) -> VmSpec:
    """A VM of two vCPUs that asks for some settings."""
    spec = parse_vm(
        'name = "guest"\nmachine.accel = "tcg"\nmemory.size = "1GiB"\n'
        'cpu = { vcpus = 2, placement = "dedicated" }\n'
        f"isolation.exclusive = {str(is_exclusive).lower()}\n",
        folder=Path("/"),
    )
    policy = structure_table(tables, Policy, "policy", Path("/"))
    return attrs.evolve(spec, policy=policy)


def world_of(flavour: str) -> tuple[World, LaunchKernel]:
    kernel = LaunchKernel(flavour, 16, 12)
    kernel.files |= BEFORE
    return World(kernel), kernel


def host_of(kernel: LaunchKernel) -> dict[str, str]:
    """Return the host as it is, without the VM's own tasks, and what its vCPUs have."""
    found = {
        path: value
        for path, value in effective_state(kernel).items()
        if not path.startswith(("task/", "run/"))
    }
    for tid, task in kernel.tasks.items():
        if task.name.startswith("CPU "):
            has = {what: value for what, value in task.scheduling.items() if what != "cookie"}
            found[task.name] = f"{has} cookie: {task.scheduling.get('cookie', '0') != '0'}"
        elif not task.leader and task.name not in {"kvm-launch", "child", "qemu-kvm"}:
            found[f"{task.name} {tid}"] = str(task.mask)
    return found


@pytest.mark.parametrize("flavour", FLAVOURS)
@settings(max_examples=15)
@given(data=st.data())
def test_the_same_file_makes_the_same_host(flavour: str, data: st.DataObject) -> None:
    """While it runs every setting is the same by either launcher, and after it as before."""
    is_exclusive = data.draw(st.booleans())
    spec = spec_of(
        data.draw(settings_tables(DRAWN if is_exclusive else FREE)), is_exclusive=is_exclusive
    )
    if list(inconsistencies(spec)):
        return
    made = plan(spec, host())
    by_libvirt, first = world_of(flavour)
    by_kvm_launch, second = world_of(flavour)
    before = host_of(first)
    assert host_of(second) == before
    described, launched = Described(made), LaunchedVm("guest")
    by_libvirt.start(described)
    lease = launched.run(by_kvm_launch, spec, host())
    assert host_of(second) == host_of(first)
    by_libvirt.stop(described)
    launched.stop(by_kvm_launch, lease)
    after = {path: value.replace("[madvise]", "madvise") for path, value in before.items()}
    for kernel in (first, second):
        left = host_of(kernel)
        path = "sys/kernel/mm/transparent_hugepage/enabled"
        assert {**left, path: ""} == {**after, path: ""}
        assert kernel.record is None
