"""One change of each kind that a snapshot watches: test_tools.py makes it and looks for it."""

from __future__ import annotations

from dataclasses import dataclass

CGROUP = "/sys/fs/cgroup"
ENABLE = f"echo +cpuset > {CGROUP}/cgroup.subtree_control"
IGB = "/sys/bus/pci/devices/0000:21:00.0"
NODE1 = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB"
MOVED, URGENT, LEFT, GONE = (f"sleep {seconds}" for seconds in (1111, 1112, 1113, 1114))
"""Processes of one change each."""

FIND_IRQ = "irq=$(awk -F: '/virtio1-input.0/ {print $1 + 0}' /proc/interrupts)"
"""The receive interrupt of the network device that leads to the agent."""

THREADS = """
import signal, threading, time, os
def start(number, frame):
    def pinned():
        os.sched_setaffinity(0, {3})
        time.sleep(1000)
    threading.Thread(target=pinned, daemon=True).start()
signal.signal(signal.SIGUSR1, start)
while True:
    time.sleep(0.1)
"""


@dataclass(frozen=True)
class Change:
    """One thing done to the host, and the lines that have to tell of it."""

    section: str
    about: str
    do: str
    undo: str
    shows: tuple[str, ...]
    """Each line of the difference that has to be there, as its words in their order."""
    before: str = "true"
    needs: str = "true"
    """A condition of the shell; where it does not hold there is nothing to change."""
    alone: bool = False
    """It also changes what the others look at, so it is not made together with them."""


CHANGES = (
    Change(
        "irq",
        "moved",
        f"{FIND_IRQ}; cat /proc/irq/$irq/smp_affinity_list > /root/was; "
        "echo 2 > /proc/irq/$irq/smp_affinity_list",
        f"{FIND_IRQ}; cat /root/was > /proc/irq/$irq/smp_affinity_list",
        ("irq: virtio1-input.0 (requested) became '2'", "irq: virtio1-input.0 (effective) '2'"),
        before=f"{FIND_IRQ}; echo 1 > /proc/irq/$irq/smp_affinity_list",
    ),
    Change(
        "default irq mask",
        "narrowed",
        "echo 0f > /proc/irq/default_smp_affinity",
        "echo ff > /proc/irq/default_smp_affinity",
        ("default irq mask: (requested) 'ff' became '0f'",),
        before="echo ff > /proc/irq/default_smp_affinity",
    ),
    Change(
        "workqueue",
        "narrowed",
        "echo 0f > /sys/devices/virtual/workqueue/cpumask",
        "echo ff > /sys/devices/virtual/workqueue/cpumask",
        ("workqueue: /workqueue/cpumask (requested) became '0f'",),
        before="echo ff > /sys/devices/virtual/workqueue/cpumask",
    ),
    Change(
        "huge pages",
        "added on one node",
        f"echo 4 > {NODE1}/nr_hugepages",
        f"echo 0 > {NODE1}/nr_hugepages",
        (
            "huge pages: node1 hugepages-2048kB/nr_hugepages (requested) '0' became '4'",
            "huge pages: node1 hugepages-2048kB/free_hugepages (effective) '0' became '4'",
        ),
    ),
    Change(
        "huge pages",
        "overcommitted",
        "echo 3 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages",
        "echo 0 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages",
        ("huge pages: nr_overcommit_hugepages (requested) '0' became '3'",),
    ),
    Change(
        "pci device",
        "given to another driver",
        f"echo vfio-pci > {IGB}/driver_override",
        f"echo > {IGB}/driver_override",
        ("pci device: 0000:21:00.0/driver_override (requested) became 'vfio-pci'",),
    ),
    Change(
        "pci device",
        "unbound",
        f"echo 0000:21:00.0 > {IGB}/driver/unbind",
        "echo 0000:21:00.0 > /sys/bus/pci/drivers/igb/bind",
        ("pci device: 0000:21:00.0 driver (effective) 'igb' became 'none'",),
        alone=True,
    ),
    Change(
        "pci device",
        "split into virtual functions",
        f"echo 1 > {IGB}/sriov_numvfs",
        f"echo 0 > {IGB}/sriov_numvfs",
        (
            "pci device: 0000:21:00.0/sriov_numvfs (requested) '0' became '1'",
            "pci device: 0000:21:10.0 driver (effective) appeared",
        ),
    ),
    Change(
        "sysctl",
        "of the scheduler",
        "sysctl -qw kernel.timer_migration=0",
        "sysctl -qw kernel.timer_migration=1",
        ("sysctl: kernel/timer_migration (requested) '1' became '0'",),
        before="sysctl -qw kernel.timer_migration=1",
    ),
    Change(
        "sysctl",
        "of the memory",
        "sysctl -qw vm.stat_interval=7",
        "sysctl -qw vm.stat_interval=1",
        ("sysctl: vm/stat_interval (requested) '1' became '7'",),
    ),
    Change(
        "module parameter",
        "of kvm",
        "echo 123 > /sys/module/kvm/parameters/halt_poll_ns",
        "echo 200000 > /sys/module/kvm/parameters/halt_poll_ns",
        ("module parameter: kvm/parameters/halt_poll_ns (requested) became '123'",),
    ),
    Change(
        "transparent huge pages",
        "off",
        "echo never > /sys/kernel/mm/transparent_hugepage/enabled",
        "echo always > /sys/kernel/mm/transparent_hugepage/enabled",
        ("transparent huge pages: transparent_hugepage/enabled (requested) became [never]",),
        before="echo always > /sys/kernel/mm/transparent_hugepage/enabled",
        alone=True,  # khugepaged ends
    ),
    Change(
        "ksm",
        "on",
        "echo 1 > /sys/kernel/mm/ksm/run",
        "echo 0 > /sys/kernel/mm/ksm/run",
        ("ksm: ksm/run (requested) '0' became '1'",),
    ),
    Change(
        "network queue",
        "received elsewhere",
        "echo 0c > /sys/class/net/lo/queues/rx-0/rps_cpus",
        "echo 0 > /sys/class/net/lo/queues/rx-0/rps_cpus",
        ("network queue: lo/queues/rx-0/rps_cpus (requested) '00' became '0c'",),
    ),
    Change(
        "network queue",
        "sent elsewhere",
        "f=$(echo /sys/bus/pci/devices/0000:21:00.0/net/*/queues/tx-0/xps_cpus); "
        "cat $f > /root/was; echo 30 > $f",
        "f=$(echo /sys/bus/pci/devices/0000:21:00.0/net/*/queues/tx-0/xps_cpus); "
        "cat /root/was > $f",
        ("network queue: tx-0/xps_cpus (requested) became '30'",),
    ),
    Change(
        "block queue",
        "scheduled otherwise",
        "echo none > /sys/block/vda/queue/scheduler",
        "echo mq-deadline > /sys/block/vda/queue/scheduler",
        ("block queue: vda/queue/scheduler (requested) became [none]",),
        before="echo mq-deadline > /sys/block/vda/queue/scheduler",
    ),
    Change(
        "cpu",
        "offline",
        "echo 0 > /sys/devices/system/cpu/cpu7/online",
        "echo 1 > /sys/devices/system/cpu/cpu7/online",
        ("cpu: cpu7/online (effective) '1' became '0'",),
        alone=True,
    ),
    Change(
        "power",
        "latency bounded",
        "echo 5 > /sys/devices/system/cpu/cpu6/power/pm_qos_resume_latency_us",
        "echo 0 > /sys/devices/system/cpu/cpu6/power/pm_qos_resume_latency_us",
        ("power: cpu6/power/pm_qos_resume_latency_us (requested) '0' became '5'",),
    ),
    Change(
        "cgroup",
        "appeared",
        f"cd {CGROUP}; [ -d cpuset ] && cd cpuset; mkdir new",
        f"rmdir $(find {CGROUP} -name new)",
        ("cgroup: new (effective) appeared",),
    ),
    Change(
        "cgroup",
        "controllers enabled",
        ENABLE,
        "true",
        ("cgroup: / cgroup.subtree_control (requested) became cpuset",),
        before=f"echo -cpuset > {CGROUP}/cgroup.subtree_control",
        needs=f"[ -e {CGROUP}/cgroup.controllers ]",
        alone=True,
    ),
    Change(
        "cgroup",
        "given CPUs and nodes",
        f"cd {CGROUP}/probe && echo 6-7 > cpuset.cpus && echo 1 > cpuset.mems",
        f"rmdir {CGROUP}/probe",
        (
            "cgroup: /probe cpuset.cpus (requested) '' became '6-7'",
            "cgroup: /probe cpuset.cpus.effective (effective) '0-7' became '6-7'",
            "cgroup: /probe cpuset.mems (requested) '' became '1'",
            "cgroup: /probe cpuset.mems.effective (effective) '0-1' became '1'",
        ),
        before=f"{ENABLE} && mkdir {CGROUP}/probe",
        needs=f"[ -e {CGROUP}/cgroup.controllers ]",
        alone=True,
    ),
    Change(
        "cgroup",
        "made a partition",
        f"cd {CGROUP}/probe && echo isolated > cpuset.cpus.partition",
        f"rmdir {CGROUP}/probe",
        (
            "cgroup: /probe cpuset.cpus.partition (requested) 'member' became 'isolated'",
            "cgroup: cpuset.cpus.effective (effective) '0-7' became '0-5'",
        ),
        before=f"{ENABLE} && mkdir {CGROUP}/probe && echo 6-7 > {CGROUP}/probe/cpuset.cpus",
        needs=f"[ -e {CGROUP}/cgroup.controllers ]",
        alone=True,
    ),
    Change(
        "cgroup",
        "given CPUs exclusively",
        f"cd {CGROUP}/probe && echo 6-7 > cpuset.cpus.exclusive",
        f"rmdir {CGROUP}/probe",
        ("cgroup: /probe cpuset.cpus.exclusive (requested) '' became '6-7'",),
        before=f"{ENABLE} && mkdir {CGROUP}/probe && echo 6-7 > {CGROUP}/probe/cpuset.cpus",
        needs="uname -r | grep -v '^6\\.1\\.' && [ -e /sys/fs/cgroup/cgroup.controllers ]",
        alone=True,
    ),
    Change(
        "cgroup",
        "given CPUs, version 1",
        f"cd {CGROUP}/cpuset/probe && echo 6-7 > cpuset.cpus && echo 1 > cpuset.cpu_exclusive",
        f"rmdir {CGROUP}/cpuset/probe",
        (
            "cgroup: /cpuset/probe cpuset.cpus (requested) '' became '6-7'",
            "cgroup: /cpuset/probe cpuset.effective_cpus (effective) '' became '6-7'",
            "cgroup: /cpuset/probe cpuset.cpu_exclusive (requested) '0' became '1'",
        ),
        before=f"mkdir {CGROUP}/cpuset/probe",
        needs=f"[ -e {CGROUP}/cpuset/cpuset.cpus ]",
        alone=True,
    ),
    Change(
        "systemd",
        "a property set",
        "systemctl set-property --runtime system.slice AllowedCPUs=0-5",
        "systemctl set-property --runtime system.slice AllowedCPUs=0-7 && "
        "systemctl revert system.slice",
        (
            "systemd: system.slice AllowedCPUs (requested) appeared, it is '0-5'",
            "systemd: system.slice DropInPaths (requested) 50-AllowedCPUs.conf",
            "unit file: /run/systemd/system.control/system.slice.d/50-AllowedCPUs.conf appeared",
        ),
        needs="[ -d /run/systemd/system ]",
    ),
    Change(
        "unit file",
        "an administrator's drop-in",
        "echo '[Slice]' > /etc/systemd/system/user.slice.d/90-probe.conf",
        "rm -r /etc/systemd/system/user.slice.d",
        ("unit file: /etc/systemd/system/user.slice.d/90-probe.conf appeared, it is '[Slice]'",),
        before="mkdir -p /etc/systemd/system/user.slice.d",
    ),
    Change(
        "kvmhooks",
        "our own state",
        "mkdir -p /run/kvmhooks/probe && echo 1 > /run/kvmhooks/probe/claim",
        "rm -r /run/kvmhooks/probe",
        ("kvmhooks: /run/kvmhooks/probe/claim (effective) appeared, it is '1'",),
    ),
    Change(
        "task",
        "a process moved",
        f"taskset -pc 3 $(pgrep -xf '{MOVED}')",
        f"pkill -xf '{MOVED}'",
        ("task: process sleep (effective) affinity: '0-7' became '3'",),
        before=f"taskset -c 0-7 {MOVED} > /dev/null 2>&1 &",
    ),
    Change(
        "task",
        "a process made real-time",
        f"chrt --fifo -p 5 $(pgrep -xf '{URGENT}')",
        f"pkill -xf '{URGENT}'",
        ("task: process sleep (effective) policy: '0/0' became '1/5'",),
        before=f"{URGENT} > /dev/null 2>&1 &",
    ),
    Change(
        "task",
        "a process left behind",
        f"taskset -c 4 {LEFT} > /dev/null 2>&1 &",
        f"pkill -xf '{LEFT}'",
        ("task: process sleep (effective): appeared, affinity 4, mems 0-1, policy 0/0",),
    ),
    Change(
        "task",
        "a process gone",
        f"pkill -xf '{GONE}'",
        "true",
        ("task: process sleep (effective): gone",),
        before=f"{GONE} > /dev/null 2>&1 &",
    ),
    Change(
        "task",
        "a new thread unlike the others of its process",
        "pkill -USR1 -f '^python3 /root/threads.py'; sleep 1",
        "pkill -f '^python3 /root/threads.py'",
        ("task: process thread python3 appeared, affinity 3, unlike any of its kind before",),
        before="python3 /root/threads.py > /dev/null 2>&1 & sleep 2",
    ),
    Change(
        "task",
        "a kernel thread moved",
        "taskset -pc 2 $(pgrep -x khugepaged)",
        "taskset -pc 0-7 $(pgrep -x khugepaged)",
        ("task: kernel thread khugepaged (effective) affinity: '0-7' became '2'",),
        before="taskset -pc 0-7 $(pgrep -x khugepaged)",
    ),
)
