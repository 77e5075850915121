"""The threads of a VM's QEMU, and which of them does what.

libvirt puts each vCPU and I/O thread into a group of its own, which only root can write; where
there are none, the names tell that QEMU gives with ``debug-threads=on`` (``iothread.c`` and
``accel/*/*-accel-ops.c``). vhost workers are called ``vhost-PID`` after QEMU. From kernel 6.4 they
are threads of it (``vhost_task_create()``); before, and where a later kernel is asked for it,
kernel threads, which cgroup v2 does not put into QEMU's groups (``cgroup_attach_task_all()`` leaves
the unified hierarchy out).
"""

from __future__ import annotations

from kvmhooks.isolate.system.process_stat import name_of
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmhooks.isolate.system.system import System
    from kvmhooks.isolate.vm.cgroups import Groups

VCPU: Final = "vcpu"
IOTHREAD: Final = "iothread"
EMULATOR: Final = "emulator"
VHOST: Final = "vhost"
WORKER: Final = "worker"
"""A thread that a vCPU has started in its own group: KVM's recovery of huge pages, which wakes up
once an hour (``vhost_task_create()`` in arch/x86/kvm/mmu/mmu.c; the lab's 6.12 has it).
"""

_VHOST: Final = "vhost-"


class Thread:
    """One thread: its number, its name, what it does, and for a vCPU which one."""

    __slots__ = ("name", "number", "role", "tid")

    def __init__(self, tid: int, name: str, role: str, number: int = 0) -> None:
        self.tid = tid
        self.name = name
        self.role = role
        self.number = number

    def __repr__(self) -> str:
        return f"Thread({self.tid}, {self.name!r}, {self.role!r}, {self.number})"


def threads_of(system: System, groups: Groups, pid: int) -> list[Thread]:
    """Return every thread of a process that is still there, by its number."""
    found = []
    for tid in sorted(int(name) for name in system.names(f"proc/{pid}/task")):
        try:
            name = name_of(system.read(f"proc/{pid}/task/{tid}/stat"))
        except OSError:  # it ended
            continue
        if owner_of(name):
            found.append(Thread(tid, name, VHOST))
            continue
        group = _role_of((groups.of_process(system, tid) or "").rpartition("/")[2])
        named = _role_of_name(name)
        role, number = group or named or (EMULATOR, 0)
        if role == VCPU and named != (role, number):
            role = WORKER
        found.append(Thread(tid, name, role, number))
    return found


def vcpus_of(system: System, groups: Groups, pid: int) -> dict[int, CpuSet]:
    """Return the CPUs of each vCPU of a VM now, as the kernel sees it; empty without any."""
    found = {}
    for thread in threads_of(system, groups, pid):
        if thread.role == VCPU:
            try:
                found[thread.number] = system.affinity(thread.tid)
            except OSError:  # it was unplugged
                continue
    return found


def owner_of(name: str) -> int:
    """Return the QEMU whose vhost worker has this name, or 0 for another thread."""
    number = name.removeprefix(_VHOST)
    return int(number) if number != name and number.isdecimal() else 0


def _role_of(group: str) -> tuple[str, int] | None:
    """Return the role by libvirt's innermost group (https://libvirt.org/cgroups.html)."""
    if group == EMULATOR:
        return EMULATOR, 0
    for role in (VCPU, IOTHREAD):
        number = group.removeprefix(role)
        if number != group and number.isdecimal():
            return role, int(number)
    return None


def _role_of_name(name: str) -> tuple[str, int] | None:
    words = name.replace("/", " ").split()
    if len(words) == 3 and words[0] == "CPU" and words[1].isdecimal():
        return VCPU, int(words[1])
    number = words[1].removeprefix("iothread") if len(words) == 2 and words[0] == "IO" else ""
    return (IOTHREAD, int(number)) if number.isdecimal() else None
