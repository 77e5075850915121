"""The VMs' own threads: scheduling class, clamps, cookies, and where vhost workers run.

A vCPU that is scheduled first in, first out keeps whatever else is on its CPU from running. So it
must have its CPU alone, at this moment and not only in the XML, and the kernel's own guard must be
in place: ``sched_rt_runtime_us`` leaves a part of each second to others
(Documentation/scheduler/sched-rt-group.rst).
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.engine.knob import TASKS, Knob
from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.isolate.system import scheduling
from kvmhooks.isolate.system.process_stat import START, fields_of
from kvmhooks.isolate.vm.qemu_threads import VCPU, VHOST, WORKER, Thread, threads_of
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System
    from kvmhooks.isolate.vm.cgroups import Groups

PREFIX: Final = "thread/"
"""The beginning of the keys; QEMU's process comes next, then the thread."""

_RT_RUNTIME: Final = "proc/sys/kernel/sched_rt_runtime_us"
_NO_COOKIES: Final = "no core scheduling: the kernel lacks CONFIG_SCHED_CORE, or the host SMT"


def knobs(
    system: System, view: View, groups: Groups, records: Mapping[str, Record]
) -> Iterator[Knob]:
    """Yield the threads of each VM that runs, and those on record whose VM has no claim now."""
    owners: dict[int, Held | None] = {
        int(key.split("/")[1]): None for key in records if key.startswith(PREFIX)
    }
    owners |= running(view)
    for pid, vm in owners.items():
        yield from _of_vm(system, groups, pid, vm, records)


def running(view: View) -> dict[int, Held]:
    """Return the claims of VMs that run, by QEMU's process."""
    return {vm.holder.pid: vm for vm in view.held if vm.state == RUNNING}


def worker(system: System, pid: int, tid: int, vm: Held | None) -> Iterator[Knob]:
    """Yield the knob of a vhost worker of the QEMU ``pid``, unless the policy leaves it alone."""
    requested = (
        "keep" if vm is None or not vm.claim.exclusive else vm.claim.setting("threads.vhost")
    )
    if requested == "keep":
        return
    try:
        emulator = system.affinity(pid)
    except OSError:  # QEMU ended, and its workers do
        return
    yield _Worker(pid, tid, None if requested == "emulator" else CpuSet.parse(requested), emulator)


def _of_vm(
    system: System, groups: Groups, pid: int, vm: Held | None, records: Mapping[str, Record]
) -> Iterator[Knob]:
    every = threads_of(system, groups, pid)
    for thread in every:
        if thread.role == VHOST:
            yield from worker(system, pid, thread.tid, vm)
    requested = {} if vm is None else dict(vm.claim.settings)
    vcpus = [thread for thread in every if thread.role == VCPU]
    if requested.get("threads.vcpus"):
        yield from _classes(system, pid, vcpus, every, vm)
    if "threads.uclamp_min" in requested or "threads.uclamp_max" in requested:
        for thread in vcpus:
            yield _Clamp(
                pid, thread.tid, requested.get("threads.uclamp_min", ""),
                requested.get("threads.uclamp_max", ""),
            )  # fmt: skip
    if "threads.sched_core" in requested:
        yield _Cookies(pid, every, requested["threads.sched_core"])
    if vm is None:
        yield from _left(pid, every, records)


def _left(pid: int, every: list[Thread], records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield the knobs to give back to a QEMU that goes on without a claim."""
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
    system: System, pid: int, vcpus: list[Thread], every: list[Thread], vm: Held | None
) -> Iterator[Knob]:
    """Yield the class of each vCPU; ``_Class`` with a reason where it would starve something."""
    if vm is None:
        return
    others = [thread for thread in every if thread.role not in {VCPU, VHOST, WORKER}]
    elsewhere = union(_affinities(system, others))
    general = unguarded(system, vm.claim)
    for thread in vcpus:
        try:
            cpus = system.affinity(thread.tid)
        except OSError:
            continue
        why = general
        if not cpus <= vm.claim.exclusive:
            own = vm.claim.exclusive.brief()
            why = f"vCPU {thread.number} runs on {cpus.brief()}, its own CPUs are {own}"
        elif not cpus.isdisjoint(elsewhere):
            shared = (cpus & elsewhere).brief()
            why = f"vCPU {thread.number} shares CPUs {shared} with QEMU's other threads"
        requested = vm.claim.setting("threads.vcpus")
        if why and _has(system, thread.tid, requested):
            yield _Class(pid, thread.tid, "", "")  # it goes back, and the next time it is refused
        else:
            yield _Class(pid, thread.tid, requested, why)


def _has(system: System, tid: int, requested: str) -> bool:
    try:
        return system.scheduling(tid, scheduling.SCHEDULER) == requested
    except OSError:  # it ended
        return False


def _affinities(system: System, threads: Iterable[Thread]) -> Iterator[CpuSet]:
    for thread in threads:
        try:
            yield system.affinity(thread.tid)
        except OSError:  # it ended
            continue


def unguarded(system: System, claim: Claim) -> str:
    """Return why no thread may be scheduled before all others on this host; empty when it may."""
    try:
        runtime = system.read(_RT_RUNTIME)
    except OSError:  # a kernel that has another guard, or none to switch off
        return ""
    if runtime != "-1" or claim.setting("kernel.rt_runtime") == "-1":
        return ""
    return (
        "sched_rt_runtime_us is -1: nothing would be left for the kernel's own threads; set it to "
        "950000, or kernel.rt_runtime to -1 in this VM's policy"
    )


class _OfVm(Knob):
    """One thing about threads of a QEMU: its VM alone asks for it."""

    __slots__ = ("pid",)

    def __init__(self, pid: int, what: str) -> None:
        super().__init__(f"{PREFIX}{pid}/{what}", TASKS + 1)
        self.pid = pid

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        vm = running(view).get(self.pid)
        return [] if vm is None else [vm]


class _Scheduling(_OfVm):
    """One thing about one thread."""

    __slots__ = ("tid", "what")

    def __init__(self, pid: int, tid: int, what: str) -> None:
        super().__init__(pid, f"{tid}/{what}")
        self.tid = tid
        self.what = what

    @property
    def place(self) -> str:
        return f"{self.what} of thread {self.tid}"

    def read(self, system: System) -> str:
        return system.scheduling(self.tid, self.what)

    def write(self, system: System, value: str) -> None:
        system.set_scheduling(self.tid, self.what, value)

    def identity(self, system: System) -> str:
        """Return when it started: a later thread may get the same number."""
        return _start_of(system, self.tid)


class _Class(_Scheduling):
    """A vCPU's scheduling class; its record holds what libvirt's ``<vcpusched>`` gave it."""

    __slots__ = ("refusal", "requested")

    def __init__(self, pid: int, tid: int, requested: str, refusal: str) -> None:
        super().__init__(pid, tid, scheduling.SCHEDULER)
        self.requested = requested
        self.refusal = refusal

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return self.requested or original

    def write(self, system: System, value: str) -> None:
        if self.refusal and value == self.requested:
            raise IsolationError(self.refusal)
        super().write(system, value)


class _Clamp(_Scheduling):
    """The share of a CPU's capacity that a vCPU counts for, at least and at most."""

    __slots__ = ("least", "most")

    def __init__(self, pid: int, tid: int, least: str, most: str) -> None:
        super().__init__(pid, tid, scheduling.UCLAMP)
        self.least = least
        self.most = most

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        least, _, most = original.partition(":")
        return f"{self.least or least}:{self.most or most}"


class _Cookies(_OfVm):
    """The threads of QEMU that share cores with each other and with nobody else.

    ``none``, ``vcpus`` (they have one cookie, the rest none), ``emulator`` (all have one), else
    ``partly``: a vCPU was plugged in, and its starter has no cookie, so that it has none.
    """

    __slots__ = ("every", "refusal", "requested")

    def __init__(self, pid: int, every: list[Thread], requested: str) -> None:
        super().__init__(pid, "sched_core")
        self.every = every
        self.requested = requested
        self.refusal = ""

    @property
    def place(self) -> str:
        return f"core scheduling of process {self.pid}"

    def identity(self, system: System) -> str:
        return _start_of(system, self.pid)

    def read(self, system: System) -> str:
        try:
            cookies = {
                thread.tid: system.scheduling(thread.tid, scheduling.COOKIE)
                for thread in self.every
                if system.has(f"proc/{thread.tid}/stat")
            }
        except OSError as error:
            if isinstance(error, ProcessLookupError):
                raise
            self.refusal = _NO_COOKIES
            return "none"
        vcpus = {
            cookies[thread.tid]
            for thread in self.every
            if thread.role == VCPU and thread.tid in cookies
        }
        rest = {
            cookies[thread.tid]
            for thread in self.every
            if thread.role != VCPU and thread.tid in cookies
        }
        if vcpus | rest <= {"0"}:
            return "none"
        if len(vcpus) == 1 and "0" not in vcpus and rest <= {"0"}:
            return "vcpus"
        return "emulator" if len(vcpus | rest) == 1 else "partly"

    def write(self, system: System, value: str) -> None:
        """Give all a new one, since one that some have cannot be given on by somebody else."""
        if self.refusal:
            raise IsolationError(self.refusal)
        if value != "none":
            system.set_scheduling(self.pid, scheduling.COOKIE, scheduling.NEW)
        for thread in self.every:
            if value == "none" or (value == "vcpus" and thread.role != VCPU):
                system.set_scheduling(thread.tid, scheduling.COOKIE, "0")

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        """Return the policy's value; cookies by libvirt's ``sched_core`` (qemu.conf) stay."""
        return self.requested or "none" if original == "none" else original

    def is_forced(self, current: str, system: System) -> bool:  # noqa: ARG002 -- the base's
        return current == "partly"


class _Worker(_OfVm):
    """The CPUs of a vhost worker: the emulator's, or the policy's."""

    __slots__ = ("emulator", "requested", "tid")

    is_volatile = True

    def __init__(
        self, pid: int, tid: int, requested: CpuSet | None, emulator: CpuSet | None
    ) -> None:
        super().__init__(pid, f"{tid}/cpus")
        self.tid = tid
        self.requested = requested
        self.emulator = emulator
        """The CPUs of QEMU's main thread; None once the worker is to be left alone."""

    @property
    def place(self) -> str:
        return f"Cpus_allowed_list of /proc/{self.tid}/status"

    def identity(self, system: System) -> str:
        return _start_of(system, self.tid)

    def read(self, system: System) -> str:
        return str(system.affinity(self.tid))

    def write(self, system: System, value: str) -> None:
        system.set_affinity(self.tid, CpuSet.parse(value))

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        """Return the place of a worker: one that is pinned within the emulator's CPUs stays."""
        if self.emulator is None:
            return original
        if self.requested is not None:
            return str(self.requested)
        return original if CpuSet.parse(original) <= self.emulator else str(self.emulator)


def _start_of(system: System, tid: int) -> str:
    return fields_of(system.read(f"proc/{tid}/stat"))[START]
