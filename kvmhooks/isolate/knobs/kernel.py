"""The kernel's clocks and limits, as a VM's policy asks."""

from __future__ import annotations

from kvmhooks.isolate.knobs.host_values import Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HOST: Final = (
    Row("kernel.rt_runtime", "proc/sys/kernel/sched_rt_runtime_us", "scheduler/sched-rt-group.rst"),
    Row("kernel.timer_migration", "proc/sys/kernel/timer_migration", "kernel/sysctl.c"),
    Row("kernel.nmi_watchdog", "proc/sys/kernel/nmi_watchdog", "admin-guide/sysctl/kernel.rst"),
    Row(
        "kernel.perf_cpu_limit",
        "proc/sys/kernel/perf_cpu_time_max_percent",
        "admin-guide/sysctl/kernel.rst",
    ),
    Row(
        "kernel.perf_sample_rate",
        "proc/sys/kernel/perf_event_max_sample_rate",
        "admin-guide/sysctl/kernel.rst",
    ),
    Row("kernel.halt_poll", "sys/module/kvm/parameters/halt_poll_ns", "virt/kvm/halt-polling.rst"),
)
