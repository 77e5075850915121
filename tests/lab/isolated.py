"""Guests of the lab that own CPUs, what disturbs them there, and how much of it reached them."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import guests

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .lab import Lab

POLICY = (
    '<metadata><kvmhooks:vm xmlns:kvmhooks="urn:kvmhooks:1">'
    '<kvmhooks:isolation exclusive="yes"/></kvmhooks:vm></metadata>'
)

PINNED = (2, 3, 6, 7)
"""The CPUs to each of which a task of the host is pinned by its owner."""

STRESS = (
    "stress-ng --fork 1 --pipe 1 --switch 1 --switch-freq 200 --timer 1 --timer-freq 200 --quiet"
)
"""Workers that fork, wake each other and are woken by timers."""

INTERRUPTS = """
for device in /sys/class/net/*; do
    case $(cat $device/address) in
        52:54:00:00:01:00) card=${device##*/};;
        52:54:00:00:02:00) wire=${device##*/};;
    esac
done
ip netns add other && ip link set $wire netns other
ip link set $card up && ip address add 10.88.0.1/24 dev $card
ip -n other link set $wire up && ip -n other address add 10.88.0.2/24 dev $wire
for irq in /proc/irq/[0-9]*; do
    grep -qE "$card|virtio[0-9]+-(in|out)put" /sys/kernel/irq/${irq##*/}/actions || continue
    echo 6-7 > $irq/smp_affinity_list
done
"""
"""A wire between two devices of the host, and the interrupts of both and of the agent's on the
CPUs that a guest will own."""

PACKETS = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    s.sendto(bytes(100), ("10.88.0.2", 9))
    time.sleep(0.01)
"""

INSISTED = re.compile(
    r"((migration|ksoftirqd|cpuhp|rcuc|irq_work|idle_inject|backlog_napi)/\d+|kworker/\d+:.*)$"
)
"""Kernel threads that are bound to one CPU: each CPU has one of each."""


@dataclass(frozen=True)
class Measured:
    """Counts of what ran on some CPUs during a time besides a guest's own threads."""

    user: dict[str, int]
    """Context switches to tasks that are not the kernel's, by name."""
    kernel: dict[str, int]
    """The same to kernel threads."""
    devices: dict[str, int]
    """Interrupts of devices, by name."""
    delay: float
    """The share of the time that the guest's vCPU that waited most stood in line, in percent."""

    @property
    def is_alone(self) -> bool:
        """The guest was alone but for what the kernel insists on."""
        return not (self.user or self.devices) and all(map(INSISTED.match, self.kernel))

    def __str__(self) -> str:
        user, kernel, devices = (
            sum(counts.values()) for counts in (self.user, self.kernel, self.devices)
        )
        insisted = ", ".join(f"{name} {count}" for name, count in self.kernel.items())
        return (
            f"{user} switches to user tasks, {kernel} to kernel threads ({insisted}), {devices} "
            f"device interrupts, worst run delay {self.delay:.2f} %"
        )


def owning(name: str, cpus: tuple[int, int], *, policy: str = POLICY, words: str = "") -> str:
    """A guest whose two vCPUs have these CPUs, with more words for its kernel."""
    pins = "".join(f"<vcpupin vcpu='{at}' cpuset='{cpu}'/>" for at, cpu in enumerate(cpus))
    tune = f"<cputune>{pins}<emulatorpin cpuset='0-1'/></cputune>"
    text = guests.domain(name).replace("<memory unit", f"{policy}<memory unit", 1)
    text = text.replace(guests.HOLD, f"{guests.HOLD} {words}")
    return text.replace("<vcpu>2</vcpu>", f"<vcpu>2</vcpu>{tune}")


def start(lab: Lab, name: str, cpus: tuple[int, int], *, policy: str = POLICY) -> None:
    """Start one; libvirt has called the hook for it, and its firmware runs."""
    lab.put(f"/root/{name}.xml", owning(name, cpus, policy=policy))
    lab.output(f"virsh -q create /root/{name}.xml", seconds=180)


def start_busy(lab: Lab, name: str, cpus: tuple[int, int], *, policy: str = POLICY) -> None:
    """Start one that never leaves its CPUs, and wait until its kernel is up."""
    lab.put(f"/root/{name}.xml", owning(name, cpus, policy=policy, words="idle=poll"))
    lab.output(f"virsh -q create /root/{name}.xml", seconds=180)
    guests.wait_for(lab, guests.log_of(name), "NESTED-HOLD")


def stop(lab: Lab, name: str) -> None:
    """End one at once, and wait until libvirt has called the hook for it."""
    lab.output(f"virsh -q destroy {name}", seconds=180)


def pin_tasks(lab: Lab, cpus: Iterable[int] = PINNED) -> None:
    """Run tasks that their owner has pinned, one to each of these CPUs."""
    for cpu in cpus:
        spawn(lab, f"taskset -c {cpu} sleep 30000", "system.slice")
    lab.output(f"until [ $(pgrep -cxf 'sleep 30000') = {len(tuple(cpus))} ]; do sleep 0.2; done")


def disturb(lab: Lab) -> None:
    """Have everything on the host that wants those CPUs: tasks in two groups, and interrupts.

    Some go where there is room; some were pinned to those very CPUs by their owners. A unit that
    has CPUs of its own keeps systemd's controller enabled: older kernels forget such pins when a
    guest, any guest, brings it.
    """
    if lab.variant.has_systemd:
        lab.output("systemctl set-property --runtime user.slice AllowedCPUs=0-7")
    pin_tasks(lab)
    for group in ("system.slice", "user.slice"):
        spawn(lab, STRESS, group, "CPUQuota=25%")
        spawn(lab, f"taskset -c 6,7 {STRESS}", group, "CPUQuota=10%")
    lab.output(INTERRUPTS)
    lab.put("/root/packets.py", PACKETS)
    spawn(lab, "python3 /root/packets.py", "user.slice")


def spawn(lab: Lab, command: str, group: str, *properties: str) -> None:
    """Run something in a group of the host until the lab ends."""
    if lab.variant.has_systemd:
        options = " ".join(f"-p {assignment}" for assignment in properties)
        lab.output(f"systemd-run -q --slice={group} {options} {command}")
        return
    where = f"/sys/fs/cgroup/{group}"
    share = f"echo 25000 > {where}/cpu.max; " if properties else ""
    join = f"mkdir -p {where}; {share}echo $$ > {where}/cgroup.procs"
    lab.output(f"setsid sh -c '{join}; exec {command}' < /dev/null > /dev/null 2>&1 &")


def measure(lab: Lab, name: str, cpus: Sequence[int], seconds: float) -> Measured:
    """Count for this time what a running guest has to share its CPUs with."""
    with ThreadPoolExecutor(3) as threads:
        switching = threads.submit(lab.switches, cpus, seconds)
        interrupting = threads.submit(lab.irqs, cpus, seconds)
        before = _waits(lab, name)
        switches, interrupts = switching.result(), interrupting.result()
        after = _waits(lab, name)
    own = {tid for tid, (_, _, _) in before.items()}
    user: dict[str, int] = {}
    kernel: dict[str, int] = {}
    for task in switches:
        if task.pid in own or not task.switches:
            continue
        # a worker of the kernel's pools may be gone before it can be asked what it was
        is_kernel = task.is_kernel or (task.is_kernel is None and task.name.startswith("kworker/"))
        counts = kernel if is_kernel else user
        counts[task.name] = counts.get(task.name, 0) + task.switches
    devices: dict[str, int] = {}
    for each in interrupts:
        if each.is_device:
            devices[each.name] = devices.get(each.name, 0) + each.count
    worst = 0.0
    for tid, (thread, waited, at) in before.items():
        if thread.startswith("CPU ") and tid in after:
            _, waited_then, then = after[tid]
            worst = max(worst, (waited_then - waited) / (then - at))
    return Measured(user, kernel, devices, 100 * worst)


def _waits(lab: Lab, name: str) -> dict[int, tuple[str, int, int]]:
    """Of each thread of a guest: its name, the nanoseconds that it has waited for a CPU, and when.

    The second number of ``/proc/PID/schedstat`` (Documentation/scheduler/sched-stats.rst).
    """
    output = lab.output(
        f"for task in /proc/$(cat /run/libvirt/qemu/{name}.pid)/task/*; do "
        "echo ${task##*/} $(cut -d' ' -f2 $task/schedstat) $(date +%s%N) $(cat $task/comm); done"
    )
    found = {}
    for line in output.splitlines():
        tid, waited, at, thread = line.split(maxsplit=3)
        found[int(tid)] = thread, int(waited), int(at)
    return found
