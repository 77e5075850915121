"""The VMs' own threads: scheduling class, clamps, cookies, and where vhost workers run.

A vCPU that is scheduled first in, first out keeps whatever else is on its CPU from running. So it
must have its CPU alone, at this moment and not only in the XML, and the kernel's own guard must be
in place: ``sched_rt_runtime_us`` leaves a part of each second to others
(Documentation/scheduler/sched-rt-group.rst).
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate import scheduling
from kvmhooks.isolate.knob import TASKS, Knob
from kvmhooks.isolate.state import RUNNING, START, fields_of
from kvmhooks.isolate.threads import VCPU, VHOST, WORKER, Thread, threads_of
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.groups import Groups
    from kvmhooks.isolate.knob import View
    from kvmhooks.isolate.state import Held, Record

PREFIX: Final = "thread/"
"""What the keys begin with; QEMU's process comes next, then the thread."""

_RT_RUNTIME: Final = "proc/sys/kernel/sched_rt_runtime_us"
_NO_COOKIES: Final = "no core scheduling: the kernel lacks CONFIG_SCHED_CORE, or the host SMT"


def knobs(door: Door, view: View, groups: Groups, records: Mapping[str, Record]) -> Iterator[Knob]:
    """The threads of each VM that runs, and those on record whose VM has no claim any more."""
    owners: dict[int, Held | None] = {
        int(key.split("/")[1]): None for key in records if key.startswith(PREFIX)
    }
    owners |= running(view)
    for pid, one in owners.items():
        yield from _of_vm(door, groups, pid, one, records)


def running(view: View) -> dict[int, Held]:
    """The claims of VMs that run, by QEMU's process."""
    return {one.holder.pid: one for one in view.held if one.state == RUNNING}


def worker(door: Door, pid: int, tid: int, one: Held | None) -> Iterator[Knob]:
    """Where a vhost worker of the QEMU ``pid`` should run, unless the policy leaves it alone."""
    wish = "keep" if one is None or not one.claim.exclusive else one.claim.setting("threads.vhost")
    if wish == "keep":
        return
    try:
        emulator = door.affinity(pid)
    except OSError:  # QEMU ended, and its workers do
        return
    yield _Worker(pid, tid, None if wish == "emulator" else CpuSet.parse(wish), emulator)


def _of_vm(
    door: Door, groups: Groups, pid: int, one: Held | None, records: Mapping[str, Record]
) -> Iterator[Knob]:
    every = threads_of(door, groups, pid)
    for thread in every:
        if thread.role == VHOST:
            yield from worker(door, pid, thread.tid, one)
    wishes = {} if one is None else dict(one.claim.settings)
    vcpus = [thread for thread in every if thread.role == VCPU]
    if wishes.get("threads.vcpus"):
        yield from _classes(door, pid, vcpus, every, one)
    if "threads.uclamp_min" in wishes or "threads.uclamp_max" in wishes:
        for thread in vcpus:
            yield _Clamp(
                pid, thread.tid, wishes.get("threads.uclamp_min", ""),
                wishes.get("threads.uclamp_max", ""),
            )  # fmt: skip
    if "threads.sched_core" in wishes:
        yield _Cookies(pid, every, wishes["threads.sched_core"])
    if one is None:
        yield from _left(pid, every, records)


def _left(pid: int, every: list[Thread], records: Mapping[str, Record]) -> Iterator[Knob]:
    """What is to be given back to a QEMU that goes on without a claim."""
    for key in records:
        parts = key.split("/")
        if not key.startswith(PREFIX) or int(parts[1]) != pid:
            continue
        if parts[2] == "sched_core":
            yield _Cookies(pid, every, "")
        elif parts[3] == scheduling.UCLAMP:
            yield _Clamp(pid, int(parts[2]), "", "")
        elif parts[3] == "cpus":
            yield _Worker(pid, int(parts[2]), None, None)
        else:
            yield _Class(pid, int(parts[2]), "", "")


def _classes(
    door: Door, pid: int, vcpus: list[Thread], every: list[Thread], one: Held | None
) -> Iterator[Knob]:
    """The class of each vCPU; ``_Class`` with a reason where it would starve something."""
    if one is None:
        return
    others = [thread for thread in every if thread.role not in {VCPU, VHOST, WORKER}]
    elsewhere = union(_affinities(door, others))
    general = _unguarded(door, one)
    for thread in vcpus:
        try:
            cpus = door.affinity(thread.tid)
        except OSError:
            continue
        why = general
        if not cpus <= one.claim.exclusive:
            own = one.claim.exclusive.brief()
            why = f"vCPU {thread.number} runs on {cpus.brief()}, its own CPUs are {own}"
        elif not cpus.isdisjoint(elsewhere):
            shared = (cpus & elsewhere).brief()
            why = f"vCPU {thread.number} shares CPUs {shared} with QEMU's other threads"
        wish = one.claim.setting("threads.vcpus")
        if why and _has(door, thread.tid, wish):
            yield _Class(pid, thread.tid, "", "")  # it goes back, and the next time it is refused
        else:
            yield _Class(pid, thread.tid, wish, why)


def _has(door: Door, tid: int, wish: str) -> bool:
    try:
        return door.scheduling(tid, scheduling.SCHEDULER) == wish
    except OSError:  # it ended
        return False


def _affinities(door: Door, threads: Iterable[Thread]) -> Iterator[CpuSet]:
    for thread in threads:
        try:
            yield door.affinity(thread.tid)
        except OSError:  # it ended
            continue


def _unguarded(door: Door, one: Held) -> str:
    """Why no thread may be scheduled before all others on this host; empty when it may."""
    try:
        runtime = door.read(_RT_RUNTIME)
    except OSError:  # a kernel that has another guard, or none to switch off
        return ""
    if runtime != "-1" or one.claim.setting("kernel.rt_runtime") == "-1":
        return ""
    return (
        "sched_rt_runtime_us is -1: nothing would be left for the kernel's own threads; set it to "
        "950000, or kernel.rt_runtime to -1 in this VM's policy"
    )


class _Scheduling(Knob):
    """One thing about one thread."""

    __slots__ = ("tid", "what")

    def __init__(self, pid: int, tid: int, what: str) -> None:
        super().__init__(f"{PREFIX}{pid}/{tid}/{what}", TASKS + 1)
        self.tid = tid
        self.what = what

    def read(self, door: Door) -> str:
        return door.scheduling(self.tid, self.what)

    def write(self, door: Door, value: str) -> None:
        door.set_scheduling(self.tid, self.what, value)

    def identity(self, door: Door) -> str:
        """When it started: a later thread may get the same number."""
        return _start_of(door, self.tid)


class _Class(_Scheduling):
    """A vCPU's scheduling class; its record holds what libvirt's ``<vcpusched>`` gave it."""

    __slots__ = ("refusal", "wish")

    def __init__(self, pid: int, tid: int, wish: str, refusal: str) -> None:
        super().__init__(pid, tid, scheduling.SCHEDULER)
        self.wish = wish
        self.refusal = refusal

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return self.wish or original

    def write(self, door: Door, value: str) -> None:
        if self.refusal and value == self.wish:
            raise IsolationError(self.refusal)
        super().write(door, value)


class _Clamp(_Scheduling):
    """How much of a CPU's capacity a vCPU counts for, at least and at most."""

    __slots__ = ("least", "most")

    def __init__(self, pid: int, tid: int, least: str, most: str) -> None:
        super().__init__(pid, tid, scheduling.UCLAMP)
        self.least = least
        self.most = most

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        least, _, most = original.partition(":")
        return f"{self.least or least}:{self.most or most}"


class _Cookies(Knob):
    """Which of QEMU's threads share cores with each other and with nobody else.

    ``none``, ``vcpus`` (they have one cookie, the rest none), ``emulator`` (all have one), else
    ``partly``: a vCPU was plugged in, and what starts it has no cookie, so that it has none.
    """

    __slots__ = ("every", "pid", "refusal", "wish")

    def __init__(self, pid: int, every: list[Thread], wish: str) -> None:
        super().__init__(f"{PREFIX}{pid}/sched_core", TASKS + 1)
        self.pid = pid
        self.every = every
        self.wish = wish
        self.refusal = ""

    def identity(self, door: Door) -> str:
        return _start_of(door, self.pid)

    def read(self, door: Door) -> str:
        try:
            cookies = {
                one.tid: door.scheduling(one.tid, scheduling.COOKIE)
                for one in self.every
                if door.has(f"proc/{one.tid}/stat")
            }
        except OSError as error:
            if isinstance(error, ProcessLookupError):
                raise
            self.refusal = _NO_COOKIES
            return "none"
        vcpus = {cookies[one.tid] for one in self.every if one.role == VCPU and one.tid in cookies}
        rest = {cookies[one.tid] for one in self.every if one.role != VCPU and one.tid in cookies}
        if vcpus | rest <= {"0"}:
            return "none"
        if len(vcpus) == 1 and "0" not in vcpus and rest <= {"0"}:
            return "vcpus"
        return "emulator" if len(vcpus | rest) == 1 else "partly"

    def write(self, door: Door, value: str) -> None:
        """All get a new one, since one that some have cannot be given on by somebody else."""
        if self.refusal:
            raise IsolationError(self.refusal)
        if value != "none":
            door.set_scheduling(self.pid, scheduling.COOKIE, scheduling.NEW)
        for one in self.every:
            if value == "none" or (value == "vcpus" and one.role != VCPU):
                door.set_scheduling(one.tid, scheduling.COOKIE, "0")

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        """What libvirt's ``sched_core`` (qemu.conf) has given them stays."""
        return self.wish or "none" if original == "none" else original

    def is_forced(self, current: str, door: Door) -> bool:  # noqa: ARG002 -- the base's
        return current == "partly"


class _Worker(Knob):
    """The CPUs of a vhost worker: the emulator's, or the policy's."""

    __slots__ = ("emulator", "tid", "wish")

    is_volatile = True

    def __init__(self, pid: int, tid: int, wish: CpuSet | None, emulator: CpuSet | None) -> None:
        super().__init__(f"{PREFIX}{pid}/{tid}/cpus", TASKS + 1)
        self.tid = tid
        self.wish = wish
        self.emulator = emulator
        """Where QEMU's main thread may run; None once the worker is to be left alone."""

    def identity(self, door: Door) -> str:
        return _start_of(door, self.tid)

    def read(self, door: Door) -> str:
        return str(door.affinity(self.tid))

    def write(self, door: Door, value: str) -> None:
        door.set_affinity(self.tid, CpuSet.parse(value))

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        """One that is pinned within the emulator's CPUs stays where it is."""
        if self.emulator is None:
            return original
        if self.wish is not None:
            return str(self.wish)
        return original if CpuSet.parse(original) <= self.emulator else str(self.emulator)


def _start_of(door: Door, tid: int) -> str:
    return fields_of(door.read(f"proc/{tid}/stat"))[START]
