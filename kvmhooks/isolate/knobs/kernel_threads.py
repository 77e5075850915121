"""The kernel's own threads that may be moved; a partition moves them by itself.

A thread that was given a mask (``sched_setaffinity(2)``) keeps it from kernel 6.2 on: any later set
of the kernel's, for a cpuset or for its interrupt, is cut to that mask, unless nothing would remain
(``__set_cpus_allowed_ptr()``, kernel/sched/core.c), and its children inherit it
(``dup_user_cpus_ptr()``). Nobody can see it. So no thread is given a narrower mask than its own
where partitions are in effect, and kthreadd, whose children are all kernel threads, never is.

- Before 6.7 no partition moves them: each that may run on a VM's CPUs is narrowed. A new one may
  run everywhere until the next look, whatever kthreadd may (``kthread()``, kernel/kthread.c).
- From 6.7 on a partition spreads all of them over what is not isolated, those of a node and those
  of an interrupt too (``cpuset_update_tasks_cpumask()``, kernel/cgroup/cpuset.c). Each that had a
  mask of its own gets it back whole: the kernel leaves out what is isolated, now and later. An
  interrupt's has none of its own.
- From 7.0 on they have their own masks back (``kthreads_update_housekeeping()``, kernel/kthread.c,
  commit e894f6339808): nothing is left to do.
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.engine.knob import TASKS, Knob, parsed
from kvmhooks.isolate.knobs.cpusets import has_partitions, narrowing
from kvmhooks.isolate.system.process_stat import PARENT, START, fields_of, name_of
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System
    from kvmhooks.isolate.vm.cgroups import Groups

KTHREADD: Final = 2

KEEPS_MASKS: Final = (6, 2)
"""The first kernel that keeps what a task was given, and hands it on (commit 8f9ea86fdf99)."""

HONOURS_MASKS: Final = (7, 0)
"""The first kernel whose partitions give kernel threads their own masks back."""


_FOLLOWS: Final = "follows"
"""The note of a thread that was where its interrupt was."""

_BEHIND: Final = ", left behind by its interrupt"


class ThreadRules:
    """The placing of kernel threads on this host, by the kernel and by us."""

    __slots__ = (
        "at_first",
        "groups",
        "is_fixed",
        "partitioned",
        "records",
        "system",
        "taken",
        "view",
    )

    def __init__(
        self, system: System, view: View, groups: Groups, records: Mapping[str, Record]
    ) -> None:
        self.system = system
        self.view = view
        self.groups = groups
        self.records = records
        self.taken = union(vm.claim.exclusive for vm in narrowing(view, groups))
        """The CPUs that we keep them off; partitions do the rest."""
        self.is_fixed = not has_partitions(view, groups)
        """No write of ours makes or ends a partition."""
        self.at_first = self._read_allowed()
        """Every CPU that is in nobody's partition, before our first write."""
        self.partitioned = view.taken("isolation.tasks") | (view.online - self.at_first)
        """The CPUs that partitions have, had a moment ago or will have."""

    @property
    def are_masks_lost(self) -> bool:
        """A partition of this kernel makes them forget masks of their own."""
        return has_partitions(self.view, self.groups) and self.view.kernel < HONOURS_MASKS

    @property
    def are_masks_kept(self) -> bool:
        """A mask that we give is kept, and handed on."""
        return self.view.kernel >= KEEPS_MASKS

    def allowed(self) -> CpuSet:
        """Return every CPU that is in nobody's partition now."""
        return self.at_first if self.is_fixed else self._read_allowed()

    def _read_allowed(self) -> CpuSet:
        is_unified = self.groups.is_unified and self.groups.base
        found = self.groups.effective(self.system, "") if is_unified else None
        return found or self.view.online


def knob_of(rules: ThreadRules, pid: int, stat: str) -> Iterator[Knob]:
    """Yield the thread, if it is on record or its mask is of interest; most are like all others."""
    fields = fields_of(stat)
    key = f"task/{pid}/{pid}"
    record = rules.records.get(key)
    if record is not None and record.identity != fields[START]:
        record = None
    if record is None and pid == KTHREADD and rules.are_masks_kept:
        return
    try:
        cpus = rules.system.affinity(pid)
        irq = _irq_of(rules, name_of(stat), record, cpus)
        inherited = None if record else _inherited(rules, int(fields[PARENT]), cpus)
        kind = IrqThread if irq else KernelThread
        knob = kind(rules, pid, irq, record, inherited)
        if record is not None or inherited is not None or knob.is_of_interest(cpus):
            yield knob
    except (OSError, ValueFormatError):  # it ended, or its interrupt has gone
        return


def _irq_of(rules: ThreadRules, name: str, record: Record | None, cpus: CpuSet) -> str:
    """Return the interrupt whose thread (``irq/27-aerdrv``) follows or did follow it, or empty."""
    number = name.removeprefix("irq/").partition("-")[0]
    if not name.startswith("irq/") or not number.isdecimal():
        return ""
    if record is not None:
        return number if record.note == _FOLLOWS else ""
    is_told = rules.system.has(_effective(number))
    return number if is_told and parsed(rules.system.read(_effective(number))) == cpus else ""


def _effective(number: str) -> str:
    return f"proc/irq/{number}/effective_affinity_list"


def _inherited(rules: ThreadRules, parent: int, cpus: CpuSet) -> Record | None:
    """Return kthreadd's record for a thread with its mask: versions until 0.1.0 narrowed that."""
    if parent != KTHREADD or not rules.are_masks_kept:
        return None
    record = rules.records.get(f"task/{KTHREADD}/{KTHREADD}")
    has_it = record is not None and record.original != str(cpus) and record.made(str(cpus))
    return record if has_it else None


class KernelThread(Knob):
    """One kernel thread. Its value is what it was given, or would run on without partitions."""

    __slots__ = ("given", "inherited", "irq", "is_written_cut", "rules", "tid", "was")

    is_volatile = True

    def __init__(
        self,
        rules: ThreadRules,
        tid: int,
        irq: str,
        record: Record | None,
        inherited: Record | None,
    ) -> None:
        super().__init__(f"task/{tid}/{tid}", TASKS)
        self.is_written_cut = not rules.are_masks_kept
        self.rules = rules
        self.tid = tid
        self.irq = irq
        self.inherited = inherited
        self.was = "" if record is None else record.original
        self.given = given(record or inherited)
        """The mask that we gave it, or may have given it; empty for none but its own."""

    @property
    def place(self) -> str:
        return f"Cpus_allowed_list of /proc/{self.tid}/status"

    def is_of_interest(self, cpus: CpuSet) -> bool:
        """Return whether it must be narrowed, or a partition will make it forget its own mask."""
        if not cpus.isdisjoint(self.rules.taken):
            return True
        return self.rules.are_masks_lost and not self.rules.at_first <= cpus

    def identity(self, system: System) -> str:
        """Return when it started: a later one may get the same number."""
        return fields_of(system.read(f"proc/{self.tid}/stat"))[START]

    def read(self, system: System) -> str:
        """Return the mask it was given, if it runs on as much of that as partitions leave.

        A CPU that is offline counts if the mask had it: kernels before 6.2 take it out of whatever
        is given meanwhile (``__sched_setaffinity()``, kernel/sched/core.c).
        """
        view, known = self.rules.view, self.given or self.was
        for _ in range(1 if self.rules.is_fixed else 2):  # a partition may go between two looks
            allowed, cpus = self.rules.allowed(), system.mask(self.tid)
            elsewhere = view.online - allowed
            if cpus.isdisjoint(view.online):  # it has run nowhere since, and is put on others
                return known or str(view.possible)
            if not known:
                break
            own = parsed(known)
            counted = view.online | own
            if cpus & counted == (own - elsewhere or view.possible - elsewhere) & counted:
                return known
        return str(cpus | elsewhere if allowed <= cpus and not self.given else cpus)

    def write(self, system: System, value: str) -> None:
        """Give it the mask; one of all CPUs has those that may come yet, too."""
        cpus, view = parsed(value), self.rules.view
        system.set_affinity(self.tid, view.possible if view.online <= cpus else cpus)
        self.given = value if value != self.was else ""

    def target(self, original: str, view: View) -> str:
        """Return its own mask without what is taken, as far as the kernel would keep it."""
        cpus, taken = parsed(original), self.rules.taken
        self.was = original
        if cpus.isdisjoint(taken):
            return original
        left = cpus - taken if self.rules.are_masks_kept else (cpus - taken) & view.online
        return str(left or self.rules.allowed() - taken or view.online - taken)

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners(parsed(original) & self.rules.taken)

    def is_forced(self, current: str, system: System) -> bool:  # noqa: ARG002 -- the base's
        """Return whether the kernel has put it on all that is in no partition."""
        allowed, cpus, was = self.rules.allowed(), parsed(current), parsed(self.was)
        if allowed <= cpus:
            return True
        # it still is where a partition has left it that has just gone, or is in the next one's way
        return not self.rules.is_fixed and cpus < was and was - cpus <= self.rules.partitioned

    def is_by_kernel(self, current: str, system: System) -> bool:
        """Return whether a partition has moved it: nothing else of the kernel's does."""
        return not self.rules.is_fixed and self.is_forced(current, system)

    def first_original(self, current: str, records: dict[str, Record]) -> str:  # noqa: ARG002
        """Return kthreadd's original for one that was born of it while narrowed, else its own."""
        return current if self.inherited is None else self.inherited.original


class IrqThread(KernelThread):
    """The thread of an interrupt: it belongs where that goes, and its value stays what it was.

    The kernel moves it there at the next interrupt after a change, from 6.9 on at once
    (``irq_thread_check_affinity()``, ``irq_set_thread_affinity()``, kernel/irq/manage.c); a write
    of the same mask is a change. A mask that the thread was given would outlive all those. So where
    partitions spread it, it stays spread while VMs own CPUs, is given nothing but all others, of
    which the kernel leaves out what is isolated, and in the end its interrupt is written again.
    """

    is_told = False
    """The kernel was told to have it follow, and may be about to."""

    def is_of_interest(self, cpus: CpuSet) -> bool:
        """Return whether its interrupt is moved, or to be moved back, or spread by a partition."""
        rules = self.rules
        is_held = rules.view.kernel < HONOURS_MASKS and f"irq/{self.irq}" in rules.records
        return is_held or rules.are_masks_lost or not cpus.isdisjoint(rules.taken)

    def read(self, system: System) -> str:
        cpus = system.mask(self.tid)
        if self.was and self._is_placed(cpus, system):
            return self.given or self.was
        return f"{cpus}{_BEHIND}" if str(cpus) == self.was else str(cpus)

    def write(self, system: System, value: str) -> None:
        """Put it where it belongs; where partitions spread it, have the kernel do that."""
        rules = self.rules
        if not rules.are_masks_lost:
            system.set_affinity(self.tid, self._home(system))
        else:
            system.set_affinity(self.tid, rules.view.possible - rules.taken)
            self._tell(system)
        self.given = value if value != self.was else ""

    def target(self, original: str, view: View) -> str:
        """Return what it was, or all but what we take: that is to be given back."""
        self.was = original
        taken = self.rules.taken if self.rules.are_masks_lost else None
        return str(view.possible - taken) if taken else original

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners(self.rules.taken) if self.rules.are_masks_lost else []

    def is_forced(self, current: str, system: System) -> bool:  # noqa: ARG002 -- the base's
        """Return True: a thread that was moved alone is moved until its interrupt is moved."""
        return True

    def is_by_kernel(self, current: str, system: System) -> bool:
        """Return True: it goes where its interrupt goes, whenever that comes."""
        return self.is_forced(current, system)

    def note(self, system: System) -> str:  # noqa: ARG002 -- the base's
        return _FOLLOWS

    def _is_placed(self, cpus: CpuSet, system: System) -> bool:
        """Return whether it is with its interrupt, or where the kernel may leave it."""
        rules = self.rules
        if not rules.are_masks_lost:
            return not self.given and cpus == self._home(system)
        if cpus == self._home(system):
            return True
        is_whole = rules.allowed() - rules.taken <= cpus and cpus.isdisjoint(rules.taken)
        return is_whole and (self.is_told or bool(rules.view.taken("isolation.tasks")))

    def _tell(self, system: System) -> None:
        """Write its interrupt's mask again, if that may be: a managed one is left to the kernel."""
        path = f"proc/irq/{self.irq}/smp_affinity_list"
        self.is_told = True
        try:
            system.write(path, system.read(path))
        except OSError:  # it stays spread until the kernel moves its interrupt
            return

    def _home(self, system: System) -> CpuSet:
        """Return the CPU of its interrupt, or all that may be used where that is somebody's own."""
        free = self.rules.allowed() - self.rules.taken
        return parsed(system.read(_effective(self.irq))) & free or free


def given(record: Record | None) -> str:
    """Return a mask of ours that a thread has, or may have."""
    if record is None:
        return ""
    ours = [record.ours or "", *(record.intent or "").split("|")]
    return next((text for text in ours if text and text != record.original), "")
