"""The host's memory: transparent huge pages, merging, balancing, as a VM's policy asks."""

from __future__ import annotations

from kvmhooks.isolate.knobs.host_values import Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HOST: Final = (
    Row("memory.thp", "sys/kernel/mm/transparent_hugepage/enabled", "admin-guide/mm/transhuge.rst"),
    Row("memory.ksm", "sys/kernel/mm/ksm/run", "admin-guide/mm/ksm.rst"),
    Row("memory.numa_balancing", "proc/sys/kernel/numa_balancing", "admin-guide/sysctl/kernel.rst"),
    Row("memory.stat_interval", "proc/sys/vm/stat_interval", "admin-guide/sysctl/vm.rst"),
)
