"""The affinity of tasks: those that their owner pinned, those in no group of their own, and kernel
threads that may be moved.

A task that is pinned to CPUs that are taken gets its own mask back. Kernels before 6.2 forget it
when the task's cpuset changes (commit 8f9ea86fdf99, «sched: Always preserve the user requested
cpumask»); newer ones keep it, and nothing is written there. The flags of /proc/PID/stat
(proc_pid_stat(5)) tell kernel threads, and those that refuse to be moved (``PF_*`` in
include/linux/sched.h).
"""

from __future__ import annotations

from kvmhooks.isolate.groups import Groups
from kvmhooks.isolate.knob import TASKS, Knob
from kvmhooks.isolate.knobs import threads
from kvmhooks.isolate.knobs.cpusets import has_partitions
from kvmhooks.isolate.state import FLAGS, PARENT, START, fields_of, name_of
from kvmhooks.isolate.threads import owner_of
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import View
    from kvmhooks.isolate.state import Record

_KERNEL: Final = 0x0020_0000
_NO_SETAFFINITY: Final = 0x0400_0000


def knobs(door: Door, view: View, groups: Groups, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Every task whose mask is, or will have to be, another than its group's."""
    taken = view.taken("isolation.tasks")
    if not taken and not any(key.startswith("task/") for key in records):
        return
    effective: dict[str, CpuSet] = {}
    owners = threads.running(view)
    kind = _SpreadThread if has_partitions(view, groups) else _KernelThread
    for pid in sorted(int(name) for name in door.names("proc") if name.isdecimal()):
        try:
            text = door.read(f"proc/{pid}/stat")
        except OSError:
            continue
        fields = fields_of(text)
        flags, parent = int(fields[FLAGS]), int(fields[PARENT])
        if flags & _KERNEL:
            owner = owner_of(name_of(text)) if owners else 0
            if owner in owners:
                yield from threads.worker(door, owner, pid, owners[owner])
            elif not flags & _NO_SETAFFINITY:
                yield from _one(door, kind(pid, pid, parent, view.online, taken), records)
            continue
        path = groups.of_process(door, pid)
        if path is None or groups.is_machine(path):
            continue
        if path not in effective:
            effective[path] = groups.effective(door, path) or view.online
        is_in_root = not path or not groups.base  # only partitions narrow that
        is_swept = is_in_root and not taken.isdisjoint(effective[path])
        for tid in sorted(int(name) for name in door.names(f"proc/{pid}/task")):
            task = _Task(pid, tid, parent, effective[path], taken, is_swept=is_swept)
            yield from _one(door, task, records)


def _one(door: Door, task: _Task, records: Mapping[str, Record]) -> Iterator[Knob]:
    """The task if it is on record or its mask is of interest; most tasks have their group's."""
    if task.key in records:
        yield task
        return
    try:
        cpus = door.affinity(task.tid)
    except OSError:  # it ended
        return
    if task.is_of_interest(cpus):
        yield task


class _Task(Knob):
    """One thread of a process."""

    __slots__ = ("allowed", "effective", "is_swept", "parent", "pid", "taken", "tid")

    is_volatile = True

    def __init__(
        self,
        pid: int,
        tid: int,
        parent: int,
        effective: CpuSet,
        taken: CpuSet,
        *,
        is_swept: bool = False,
    ) -> None:
        super().__init__(f"task/{pid}/{tid}", TASKS)
        self.pid, self.tid, self.parent = pid, tid, parent
        self.effective = effective
        """What its group may use now."""
        self.taken = taken
        self.is_swept = is_swept
        """Whether no group of it can be narrowed, so that its own mask must be."""

    def is_of_interest(self, cpus: CpuSet) -> bool:
        """Whether its mask is its own, or must become so."""
        return self.is_swept or cpus != self.effective

    def read(self, door: Door) -> str:
        return str(door.affinity(self.tid))

    def write(self, door: Door, value: str) -> None:
        door.set_affinity(self.tid, CpuSet.parse(value))

    def identity(self, door: Door) -> str:
        """When it started: a later task may get the same number."""
        return fields_of(door.read(f"proc/{self.pid}/task/{self.tid}/stat"))[START]

    def target(self, original: str, view: View) -> str:
        cpus = CpuSet.parse(original)
        if cpus.isdisjoint(self.taken):
            return original
        return str(cpus - self.taken or self.effective - self.taken or view.online - self.taken)

    def is_forced(self, current: str, door: Door) -> bool:  # noqa: ARG002 -- the base's
        """An older kernel sets a pinned task to its group's CPUs when these change."""
        return not self.is_swept and CpuSet.parse(current) == self.effective

    def first_original(self, current: str, records: dict[str, Record]) -> str:
        """A task that was forked since carries our mask: its parent's original is its own."""
        for key in (f"task/{self.pid}/{self.pid}", f"task/{self.parent}/{self.parent}"):
            record = records.get(key)
            if record is not None and record.made(current):
                return record.original
        return current


class _KernelThread(_Task):
    """A kernel thread that may be moved: it is in the root group, which cannot be narrowed."""

    __slots__ = ()

    def is_of_interest(self, cpus: CpuSet) -> bool:
        return not cpus.isdisjoint(self.taken)

    def is_forced(self, current: str, door: Door) -> bool:  # noqa: ARG002 -- the base's
        """The kernel has put it on all that is not taken."""
        return self.effective - self.taken <= CpuSet.parse(current)

    def first_original(self, current: str, records: dict[str, Record]) -> str:  # noqa: ARG002
        """Kthreadd gives a new one the housekeeping mask, and none of its own."""
        return current


class _SpreadThread(_KernelThread):
    """One of a kernel with partitions.

    Such a kernel spreads every one of them, kswapd of a node too, over all that is not isolated,
    whenever that changes (``update_tasks_cpumask()``, kernel/cgroup/cpuset.c).
    """

    __slots__ = ()

    def is_of_interest(self, cpus: CpuSet) -> bool:
        return cpus != self.effective or super().is_of_interest(cpus)
