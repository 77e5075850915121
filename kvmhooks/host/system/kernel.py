"""The running kernel: how it was started, and the switches of it that matter to VMs.

``/sys/devices/system/cpu/vulnerabilities`` is described in the kernel's
Documentation/ABI/testing/sysfs-devices-system-cpu, ``/proc`` in Documentation/filesystems/
proc.rst, the sysctls in Documentation/admin-guide/sysctl, huge pages and KSM in
Documentation/admin-guide/mm (transhuge.rst, ksm.rst).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.files.formats import split_words
from kvmhooks.host.files.lists import CPUS
from kvmhooks.host.system.cmdline import (
    parse_boot_pages,
    parse_isolation,
    parse_parameters,
)
from kvmhooks.host.system.manager import read_services
from kvmhooks.host.system.system import Kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.host.files.lists import CpuLists
    from kvmhooks.host.files.tree import Tree

_VERSION: Final = re.compile(r"Linux version (\S+)")
_FILE: Final = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)
_CHOSEN: Final = re.compile(r"\[(\S+)\]")
_CHOSEN_ROUND: Final = re.compile(r"\((\S+)\)")
_CLOCK: Final = "sys/devices/system/clocksource/clocksource0"
_THP: Final = "sys/kernel/mm/transparent_hugepage"
_THP_SWITCHES: Final = ("enabled", "defrag", "shmem_enabled")
_KSM: Final = "sys/kernel/mm/ksm"
_KSM_SWITCHES: Final = (
    "run",
    "pages_to_scan",
    "sleep_millisecs",
    "merge_across_nodes",
    "use_zero_pages",
    "pages_shared",
    "pages_sharing",
)
_SYSCTLS: Final = (
    "kernel.numa_balancing",
    "kernel.nmi_watchdog",
    "kernel.watchdog",
    "kernel.watchdog_cpumask",
    "kernel.timer_migration",
    "kernel.sched_rt_period_us",
    "kernel.sched_rt_runtime_us",
    "kernel.sched_autogroup_enabled",
    "kernel.perf_event_paranoid",
    "vm.swappiness",
    "vm.stat_interval",
    "vm.max_map_count",
    "vm.nr_overcommit_hugepages",
    "vm.nr_hugepages_mempolicy",
    "vm.hugetlb_shm_group",
    "vm.overcommit_memory",
    "vm.zone_reclaim_mode",
    "vm.dirty_ratio",
    "vm.dirty_background_ratio",
    "vm.compaction_proactiveness",
    "vm.unprivileged_userfaultfd",
    "net.ipv4.ip_forward",
    "net.core.busy_poll",
    "net.core.busy_read",
)
_PREEMPTION: Final = {
    "PREEMPT_RT": "rt",
    "PREEMPT_DYNAMIC": None,  # chosen at boot: /proc/version does not say which
    "PREEMPT_LAZY": "lazy",
    "PREEMPT": "full",
}
_DYNAMIC: Final = frozenset({"none", "voluntary", "full", "lazy"})


def read_kernel(tree: Tree, lists: CpuLists) -> Kernel | None:
    """Read the kernel; None where the tree tells nothing of it."""
    version = tree.text("proc/version")
    cmdline = tree.text("proc/cmdline")
    parameters = None if cmdline is None else parse_parameters(cmdline)
    last_cpu = max(lists.possible) if lists.possible else None
    available = tree.text(f"{_CLOCK}/available_clocksource")
    kernel = Kernel(
        release=tree.text("proc/sys/kernel/osrelease") or _release_of(version),
        cmdline=cmdline,
        isolated=lists.isolated,
        nohz_full=lists.nohz_full,
        services=read_services(tree, parameters or {}),
        version=version,
        parameters=parameters,
        asked=None if parameters is None else parse_isolation(parameters, last_cpu, tree.flaws),
        boot_pages=None if cmdline is None else parse_boot_pages(cmdline),
        preemption=_read_preemption(tree, version, parameters or {}),
        clocksource=tree.text(f"{_CLOCK}/current_clocksource"),
        clocksources=None if available is None else tuple(split_words(available)),
        transparent_hugepages=_read_switches(tree, _THP, _THP_SWITCHES),
        ksm=_read_switches(tree, _KSM, _KSM_SWITCHES),
        vulnerabilities=_read_vulnerabilities(tree),
        sysctls=_read_sysctls(tree),
    )
    return None if kernel == Kernel() else kernel


def _release_of(version: str | None) -> str | None:
    found = _VERSION.match(version or "")
    return found[1] if found is not None else None


def _read_preemption(
    tree: Tree, version: str | None, parameters: Mapping[str, tuple[str, ...]]
) -> str | None:
    """Tell the preemption model: from debugfs, the command line, or what it was built with.

    A kernel built without any of the words in its version is either «none» or «voluntary».
    """
    chosen = _CHOSEN_ROUND.search(tree.text("sys/kernel/debug/sched/preempt") or "")
    if chosen is not None:
        return chosen[1]
    words = split_words(version or "")
    built = next((word for word in _PREEMPTION if word in words), None)
    if built == "PREEMPT_DYNAMIC":
        asked = parameters.get("preempt", ("",))[-1]
        return asked if asked in _DYNAMIC else None
    return None if built is None else _PREEMPTION[built]


def _read_switches(tree: Tree, path: str, names: tuple[str, ...]) -> dict[str, str] | None:
    """Read values of which the one in force is in brackets, or which are plain."""
    directory = tree.directory(path)
    if directory is None:
        return None
    with directory:
        texts = ((name, directory.text(name)) for name in names)
        return {
            name: chosen[1] if (chosen := _CHOSEN.search(text)) else text
            for name, text in texts
            if text is not None
        }


def _read_vulnerabilities(tree: Tree) -> dict[str, str] | None:
    directory = tree.directory(f"{CPUS}/vulnerabilities")
    if directory is None:
        return None
    with directory:
        texts = ((name, directory.text(name)) for name in directory.names(_FILE))
        return {name: text for name, text in texts if text is not None}


def _read_sysctls(tree: Tree) -> dict[str, str] | None:
    if not tree.has("proc/sys"):
        return None
    texts = ((name, tree.text(f"proc/sys/{name.replace('.', '/')}")) for name in _SYSCTLS)
    return {name: text for name, text in texts if text is not None}
