"""Reads the state of the host it runs on, and prints it as JSON. Standard library only.

    {"facts": [[section, name, "requested" | "effective", value]...],
     "tasks": [[pid, tid, start, name, is_kernel, affinity, mems, policy]...],
     "kernel": release}

«Requested» is what somebody wrote there, «effective» what the kernel makes of it.
"""

import glob
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

Fact = tuple[str, str, str, str]
Task = tuple[int, int, int, str, bool, str, str, str]

CPU = "/sys/devices/system/cpu"
NODE = "/sys/devices/system/node"
PCI = "/sys/bus/pci/devices"

# section, pattern of paths, whether it is requested or effective
FILES = [
    ("irq", "/proc/irq/*/smp_affinity_list", "requested"),
    ("irq", "/proc/irq/*/effective_affinity_list", "effective"),
    ("default irq mask", "/proc/irq/default_smp_affinity", "requested"),
    ("workqueue", "/sys/devices/virtual/workqueue/cpumask*", "requested"),
    ("workqueue", "/sys/devices/virtual/workqueue/*/cpumask", "requested"),
    ("workqueue", "/sys/devices/virtual/workqueue/*/affinity_*", "requested"),
    ("huge pages", NODE + "/node*/hugepages/*/nr_hugepages", "requested"),
    ("huge pages", NODE + "/node*/hugepages/*/free_hugepages", "effective"),
    ("huge pages", NODE + "/node*/hugepages/*/surplus_hugepages", "effective"),
    ("huge pages", "/sys/kernel/mm/hugepages/*/nr_overcommit_hugepages", "requested"),
    ("huge pages", "/sys/kernel/mm/hugepages/*/resv_hugepages", "effective"),
    ("pci device", PCI + "/*/driver_override", "requested"),
    ("pci device", PCI + "/*/sriov_numvfs", "requested"),
    ("pci device", PCI + "/*/sriov_drivers_autoprobe", "requested"),
    ("sysctl", "/proc/sys/kernel/numa_balancing*", "requested"),
    ("sysctl", "/proc/sys/kernel/sched_*", "requested"),
    ("sysctl", "/proc/sys/kernel/timer_migration", "requested"),
    ("sysctl", "/proc/sys/kernel/*watchdog*", "requested"),
    ("sysctl", "/proc/sys/kernel/hung_task_*", "requested"),
    ("sysctl", "/proc/sys/net/core/*flow*", "requested"),
    ("sysctl", "/proc/sys/vm/*", "requested"),
    ("module parameter", "/sys/module/kvm*/parameters/*", "requested"),
    ("module parameter", "/sys/module/vfio*/parameters/*", "requested"),
    ("module parameter", "/sys/module/workqueue/parameters/*", "requested"),
    ("module parameter", "/sys/module/rcu*/parameters/*", "requested"),
    ("transparent huge pages", "/sys/kernel/mm/transparent_hugepage/*", "requested"),
    ("transparent huge pages", "/sys/kernel/mm/transparent_hugepage/khugepaged/*", "requested"),
    ("transparent huge pages", "/sys/kernel/mm/transparent_hugepage/*/enabled", "requested"),
    ("ksm", "/sys/kernel/mm/ksm/*", "requested"),
    ("network queue", "/sys/class/net/*/queues/rx-*/rps_*", "requested"),
    ("network queue", "/sys/class/net/*/queues/tx-*/xps_*", "requested"),
    ("block queue", "/sys/block/*/queue/scheduler", "requested"),
    ("block queue", "/sys/block/*/queue/nr_requests", "requested"),
    ("block queue", "/sys/block/*/queue/rq_affinity", "requested"),
    ("cpu", CPU + "/cpu*/online", "effective"),
    ("cpu", CPU + "/smt/control", "requested"),
    ("cpu", CPU + "/isolated", "effective"),
    ("power", CPU + "/cpu*/power/pm_qos_resume_latency_us", "requested"),
    ("power", CPU + "/cpufreq/policy*/scaling_governor", "requested"),
    ("power", CPU + "/cpufreq/policy*/energy_performance_preference", "requested"),
]

NO_SETAFFINITY = 0x0400_0000
"""``PF_NO_SETAFFINITY`` (include/linux/sched.h): the kernel alone places such a thread.

A workqueue's rescuer stays where it rescued last (``worker_attach_to_pool()``,
kernel/workqueue.c)."""

# counters and switches that only act: no state that anyone could restore
NOT_STATE = re.compile(
    "/pages_(collapsed|scanned|shared|sharing|skipped|unshared|volatile)$|/full_(scans|collapsed)$"
    "|/(general_profit|ksm_zero_pages|stable_node_chains|stable_node_dups)$"
    "|/vm/(compact_memory|drop_caches|stat_refresh|nr_hugepages(_mempolicy)?)$"
)

# cpuset files of either cgroup version; the rest of the version 1 files measure or act
CPUSET = {
    "cpuset.cpus": "requested",
    "cpuset.mems": "requested",
    "cpuset.cpus.exclusive": "requested",
    "cpuset.cpus.partition": "requested",
    "cpuset.cpus.effective": "effective",
    "cpuset.mems.effective": "effective",
    "cpuset.cpus.exclusive.effective": "effective",
    "cpuset.cpus.isolated": "effective",
    "cpuset.cpu_exclusive": "requested",
    "cpuset.mem_exclusive": "requested",
    "cpuset.memory_migrate": "requested",
    "cpuset.sched_load_balance": "requested",
    "cpuset.effective_cpus": "effective",
    "cpuset.effective_mems": "effective",
    "cgroup.subtree_control": "requested",
    "cgroup.type": "requested",
    "cpu.weight": "requested",
    "cpu.max": "requested",
}

UNIT_PROPERTIES = [
    "AllowedCPUs",
    "StartupAllowedCPUs",
    "AllowedMemoryNodes",
    "StartupAllowedMemoryNodes",
    "EffectiveCPUs",
    "EffectiveMemoryNodes",
    "CPUAffinity",
    "CPUWeight",
    "CPUQuotaPerSecUSec",
    "NUMAPolicy",
    "NUMAMask",
    "DropInPaths",
]

UNITS = (".slice", ".scope", ".service")
UNIT_DIRECTORIES = ["/etc/systemd", "/run/systemd"]


def main() -> None:
    facts = [*files(), *cgroups(), *drivers(), *units(), *drop_ins(), *our_files()]
    kernel = os.uname().release
    json.dump({"facts": facts, "tasks": list(tasks()), "kernel": kernel}, sys.stdout)


def read(path: str) -> str | None:
    """Return the text of a file; an error on reading it is a fact as well."""
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as problem:
        return "unreadable: " + (getattr(problem, "strerror", None) or type(problem).__name__)


def files() -> Iterator[Fact]:
    for section, pattern, kind in FILES:
        for path in sorted(glob.glob(pattern)):
            if not os.path.isfile(path) or NOT_STATE.search(path):
                continue
            value = read(path)
            if value is not None:
                yield section, irq_name(path) if section == "irq" else path, kind, value


def irq_name(path: str) -> str:
    """An IRQ by what it is: numbers are given away again when a device leaves."""
    number = path.split("/")[3]
    known = "/sys/kernel/irq/" + number
    parts = [read(f"{known}/{name}") or "" for name in ("chip_name", "hwirq", "actions")]
    return f"{number} ({' '.join(parts)})"


def cgroups() -> Iterator[Fact]:
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if os.path.exists(root + "/cgroup.controllers"):
            yield from below(root)
    if os.path.isdir("/sys/fs/cgroup/cpuset"):
        yield from below("/sys/fs/cgroup/cpuset")


def below(root: str) -> Iterator[Fact]:
    for directory, _, names in os.walk(root):
        group = directory[len("/sys/fs/cgroup") :] or "/"
        yield "cgroup", group, "effective", "exists"
        for name in sorted(set(names) & set(CPUSET)):
            value = read(directory + "/" + name)
            if value is not None:
                yield "cgroup", group + " " + name, CPUSET[name], value


def drivers() -> Iterator[Fact]:
    for device in sorted(glob.glob(PCI + "/*")):
        path = device + "/driver"
        driver = os.path.basename(os.readlink(path)) if os.path.islink(path) else "none"
        yield "pci device", device + " driver", "effective", driver


def units() -> Iterator[Fact]:
    """Units that are active or failed, and properties of those that have a cgroup of their own.

    These are asked for by name: of a pattern, systemd tells some 300 properties of each unit, which
    took two thirds of a snapshot.
    """
    if not os.path.isdir("/run/systemd/system"):
        return
    kinds = ["*" + suffix for suffix in UNITS]
    listed = systemctl("list-units", "--plain", "--no-legend", "--full", "--", *kinds)
    for line in listed.splitlines():
        yield "systemd", line.split()[0], "requested", "exists"
    named = "/sys/fs/cgroup/systemd"  # its own hierarchy, where there are several
    names = {"-.slice"}
    for _, directories, _ in os.walk(named if os.path.isdir(named) else "/sys/fs/cgroup"):
        names.update(name for name in directories if name.endswith(UNITS))
    properties = ",".join(["Id", "LoadState", *UNIT_PROPERTIES])
    for block in systemctl("show", "--property=" + properties, "--", *sorted(names)).split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("LoadState") == "not-found":  # it has just gone
            continue
        for name in UNIT_PROPERTIES:
            if values.get(name):
                kind = "effective" if name.startswith("Effective") else "requested"
                yield "systemd", values["Id"] + " " + name, kind, values[name]


def systemctl(*words: str) -> str:
    """Return its output; it has to succeed."""
    return subprocess.run(
        ["systemctl", *words], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def drop_ins() -> Iterator[Fact]:
    for directory in UNIT_DIRECTORIES:
        for path in sorted(glob.glob(directory + "/**/*", recursive=True)):
            if path.endswith((".conf", ".service", ".slice", ".scope")):
                yield "unit file", path, "requested", content(path)


def our_files() -> Iterator[Fact]:
    for path in sorted(glob.glob("/run/kvmhooks/**/*", recursive=True)):
        if os.path.isfile(path):
            yield "kvmhooks", path, "effective", content(path)
        else:
            yield "kvmhooks", path, "effective", "exists"


def content(path: str) -> str:
    """A file's text, or a hash of what is longer than a line."""
    if os.path.islink(path):
        return "-> " + os.readlink(path)
    text = read(path)
    if text is None or len(text) < 200:
        return (text or "").replace("\n", " | ")
    return "sha256 " + hashlib.sha256(text.encode()).hexdigest()[:16]


def tasks() -> Iterator[Task]:
    """Every thread but those of this program."""
    for directory in glob.glob("/proc/[0-9]*/task/[0-9]*"):
        pid, tid = int(directory.split("/")[2]), int(directory.split("/")[4])
        try:
            affinity = os.sched_getaffinity(tid)
            status = read(directory + "/status") or ""
            stat = read(directory + "/stat") or ""
        except ProcessLookupError:
            continue
        if pid == os.getpid() or ")" not in stat or "Mems_allowed_list" not in status:
            continue
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        # fields 3 and on of proc(5): 9 is flags, 22 the start, 40 and 41 priority and policy
        rest = stat[stat.rindex(")") + 2 :].split()
        flags = int(rest[6])
        is_kernel = bool(flags & 0x00200000)
        is_bound = is_kernel and flags & NO_SETAFFINITY
        mems = status.partition("Mems_allowed_list:")[2].split()[0]
        policy = f"{rest[38]}/{rest[37]}"
        yield (
            pid,
            tid,
            int(rest[19]),
            name,
            is_kernel,
            "bound" if is_bound else as_list(affinity),
            mems,
            policy,
        )


def as_list(cpus: set[int]) -> str:
    """The kernel's spelling of a set."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


main()
