"""The affinity of tasks: those that their owner pinned, and those in no group of their own.

A task that is pinned to CPUs that are taken gets its own mask back. Kernels before 6.2 forget it
when the task's cpuset changes (commit 8f9ea86fdf99, «sched: Always preserve the user requested
cpumask»); newer ones keep it, and nothing is written there: the value seen is no original, since it
lacks all CPUs in a partition. The flags of /proc/PID/stat (proc_pid_stat(5)) tell kernel threads,
and those that refuse to be moved (``PF_*`` in include/linux/sched.h).
"""

from __future__ import annotations

from kvmhooks.isolate.engine.knob import TASKS, Knob
from kvmhooks.isolate.knobs import kernel_threads, threads
from kvmhooks.isolate.knobs.kernel_threads import ThreadRules, given
from kvmhooks.isolate.system.process_stat import FLAGS, PARENT, START, fields_of, name_of
from kvmhooks.isolate.vm.cgroups import Groups
from kvmhooks.isolate.vm.qemu_threads import owner_of
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System

_KERNEL: Final = 0x0020_0000
_NO_SETAFFINITY: Final = 0x0400_0000


def knobs(
    system: System,
    view: View,
    groups: Groups,
    records: Mapping[str, Record],
    pids: Iterable[int] | None = None,
) -> Iterator[Knob]:
    """Yield every task whose mask is, or will have to be, another than its group's.

    Other processes than ``pids`` are not looked at where these are given.
    """
    taken = view.taken("isolation.tasks")
    if not taken and not any(key.startswith(("task/", "irq/")) for key in records):
        return
    sets = _Sets(system, view, groups)
    owners = threads.running(view)
    rules = kernel_threads.ThreadRules(system, view, groups, records)
    for pid in sorted(_processes(system) if pids is None else pids):
        try:
            text = system.read(f"proc/{pid}/stat")
        except OSError:
            continue
        fields = fields_of(text)
        flags, parent = int(fields[FLAGS]), int(fields[PARENT])
        if flags & _KERNEL:
            owner = owner_of(name_of(text)) if owners else 0
            if owner in owners:
                yield from threads.worker(system, owner, pid, owners[owner])
            elif not flags & _NO_SETAFFINITY:
                yield from kernel_threads.knob_of(rules, pid, text)
            continue
        path = groups.of_process(system, pid)
        if path is not None and not groups.is_machine(path):
            yield from _of_process(rules, pid, parent, sets.of(path), path)


def _processes(system: System) -> Iterator[int]:
    return (int(name) for name in system.names("proc") if name.isdecimal())


class _Sets:
    """The CPUs of each group's tasks; of all groups that were asked for."""

    __slots__ = ("effective", "groups", "system", "view")

    def __init__(self, system: System, view: View, groups: Groups) -> None:
        self.system = system
        self.view = view
        self.groups = groups
        self.effective: dict[str, CpuSet] = {}

    def of(self, path: str) -> CpuSet:
        """Return the set of the group, or all CPUs."""
        if path not in self.effective:
            found = self.groups.effective(self.system, path)
            self.effective[path] = found or self.view.online
        return self.effective[path]


def _of_process(
    rules: ThreadRules, pid: int, parent: int, effective: CpuSet, path: str
) -> Iterator[Knob]:
    """Yield the threads of a process; only a partition narrows the group at the root."""
    system, records = rules.system, rules.records
    taken = CpuSet() if rules.groups.is_theirs(path) else rules.view.taken("isolation.tasks")
    is_alone = not path or not rules.groups.base
    is_swept = is_alone and not rules.taken.isdisjoint(effective)
    for tid in sorted(int(name) for name in system.names(f"proc/{pid}/task")):
        task = _Task(pid, tid, parent, effective, taken, is_swept=is_swept)
        if is_swept or not rules.are_masks_kept or given(records.get(task.key)):
            yield from _one(system, task, records)


def _one(system: System, task: _Task, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield the task if it is on record or its mask is of interest; most have their group's."""
    if task.key in records:
        yield task
        return
    try:
        cpus = system.affinity(task.tid)
    except OSError:  # it ended
        return
    if task.is_of_interest(cpus):
        yield task


class _Task(Knob):
    """One thread of a process."""

    __slots__ = ("allowed", "effective", "is_swept", "parent", "pid", "taken", "tid")

    is_volatile = True
    loses_offline = True
    is_written_cut = True

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
        """The CPUs of its group now."""
        self.taken = taken
        self.is_swept = is_swept
        """No group of it can be narrowed, so that its own mask must be."""

    @property
    def place(self) -> str:
        return f"Cpus_allowed_list of /proc/{self.pid}/task/{self.tid}/status"

    def is_of_interest(self, cpus: CpuSet) -> bool:
        """Return whether its mask is its own, or must become so."""
        return self.is_swept or cpus != self.effective

    def read(self, system: System) -> str:
        return str(system.mask(self.tid))

    def write(self, system: System, value: str) -> None:
        system.set_affinity(self.tid, CpuSet.parse(value))

    def identity(self, system: System) -> str:
        """Return when it started: a later task may get the same number."""
        return fields_of(system.read(f"proc/{self.pid}/task/{self.tid}/stat"))[START]

    def target(self, original: str, view: View) -> str:
        cpus = CpuSet.parse(original)
        if cpus.isdisjoint(self.taken):
            return original
        return str(cpus - self.taken or self.effective - self.taken or view.online - self.taken)

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners(CpuSet.parse(original) & self.taken, "isolation.tasks")

    def is_forced(self, current: str, system: System) -> bool:  # noqa: ARG002 -- the base's
        """Return whether it has its group's CPUs: older kernels give it these when they change."""
        return not self.is_swept and CpuSet.parse(current) == self.effective

    def first_original(self, current: str, records: dict[str, Record]) -> str:
        """Return the parent's original for a task that was forked since and carries our mask."""
        for key in (f"task/{self.pid}/{self.pid}", f"task/{self.parent}/{self.parent}"):
            record = records.get(key)
            if record is not None and record.made(current):
                return record.original
        return current
