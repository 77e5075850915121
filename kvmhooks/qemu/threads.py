"""The threads of a QEMU process: which is which, pinned, and read back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

from kvmhooks.errors import QemuError
from kvmhooks.placement.model import Plan
from kvmhooks.values import CpuSet

EMULATOR: Final = "emulator"

CLASSES: Final = {"batch": os.SCHED_BATCH, "idle": os.SCHED_IDLE}
"""Classes that any thread may have, without being root."""


@frozen
class ThreadPin:
    """One thread: what it does, where it was planned, and where it may run."""

    role: str
    """``vCPU 0``, ``iothread 1`` or ``emulator``."""
    thread: int
    planned: CpuSet
    affinity: CpuSet
    """Read back from ``/proc/PID/task/TID/status``."""

    @property
    def is_as_planned(self) -> bool:
        """It may run where it was planned and nowhere else."""
        return self.affinity == self.planned


def planned_cpus(plan: Plan) -> dict[str, CpuSet]:
    """Return the CPUs of each role of ``plan``."""
    return {
        **{f"vCPU {pin.vcpu}": pin.cpus for pin in plan.vcpus},
        **{f"iothread {pin.id}": pin.cpus for pin in plan.iothreads},
        EMULATOR: plan.emulator,
    }


def pin(process: int, plan: Plan, threads: Mapping[str, int]) -> None:
    """Pin all threads of a QEMU that is stopped: ``threads`` is role to thread id.

    Every thread without a role of the plan's is the emulator's; one that is started meanwhile
    inherits its maker's CPUs, so the list is read until nothing new is on it. Raises ``QemuError``.
    """
    planned = planned_cpus(plan)
    roles = {thread: role for role, thread in threads.items()}
    seen: set[int] = set()
    try:
        while fresh := set(tasks(process)) - seen:
            for thread in fresh:
                os.sched_setaffinity(
                    thread, planned.get(roles.get(thread, EMULATOR), plan.emulator)
                )
            seen |= fresh
    except OSError as error:
        raise QemuError(f"QEMU's threads could not be pinned: {error.strerror}") from error


def repin(process: int, plan: Plan, threads: Mapping[str, int]) -> None:
    """Pin all threads of a QEMU that runs, and read back that they are where they were planned.

    A cpuset may narrow what was asked for, without an error (sched_setaffinity(2)). Raises
    ``QemuError``.
    """
    pin(process, plan, threads)
    require_planned(read_back(process, plan, threads, may_lack=True))


def schedule(process: int, plan: Plan, threads: Mapping[str, int]) -> None:
    """Give threads the class ``batch`` or ``idle`` where the spec says so (sched(7)).

    Real-time classes are the claim's: they take a CPU of their own. Raises ``QemuError``.
    """
    tuning = plan.spec.tuning
    kinds = {"vCPU": tuning.vcpus, "iothread": tuning.iothreads}
    roles = {thread: role for role, thread in threads.items()}
    try:
        for thread in tasks(process):
            kind = kinds.get(roles.get(thread, EMULATOR).partition(" ")[0], tuning.emulator)
            if kind.scheduler in CLASSES:
                os.sched_setscheduler(thread, CLASSES[kind.scheduler], os.sched_param(0))
    except OSError as error:
        raise QemuError(f"QEMU's threads could not be scheduled: {error.strerror}") from error


def read_back(
    process: int, plan: Plan, threads: Mapping[str, int], *, may_lack: bool = False
) -> list[ThreadPin]:
    """Return every role of ``plan`` with its thread and the CPUs that it may run on.

    vCPUs that are not there from the start are left out; with ``may_lack`` all that are not there,
    since some may have been unplugged.

    Raises ``QemuError`` for a role without a thread, or a thread that is gone.
    """
    found = []
    current = plan.spec.cpu.current or len(plan.vcpus)
    absent = {f"vCPU {pin.vcpu}" for pin in plan.vcpus[current:]}
    for role, cpus in planned_cpus(plan).items():
        thread = process if role == EMULATOR else threads.get(role)
        if thread is None and (may_lack or role in absent):
            continue
        if thread is None:
            raise QemuError(f"{role}: QEMU has no such thread")
        found.append(ThreadPin(role, thread, cpus, affinity(process, thread)))
    return found


def require_planned(pins: Iterable[ThreadPin]) -> None:
    """Raise ``QemuError`` for a thread that is not where it was planned."""
    for pin in pins:
        if not pin.is_as_planned:
            raise QemuError(
                f"{pin.role} (thread {pin.thread}): found on CPUs {pin.affinity}, expected "
                f"{pin.planned}: a cpuset keeps it there"
            )


def tasks(process: int) -> Iterator[int]:
    """Yield the thread ids of a process."""
    yield from (int(name) for name in os.listdir(f"/proc/{process}/task"))  # noqa: PTH208


def affinity(process: int, thread: int) -> CpuSet:
    """Return the CPUs that a thread may run on (``Cpus_allowed_list`` of proc_pid_status(5)).

    Raises ``QemuError`` when it is gone.
    """
    try:
        status = Path(f"/proc/{process}/task/{thread}/status").read_bytes()
    except OSError as error:
        raise QemuError(f"thread {thread} of QEMU is gone: {error.strerror}") from error
    found = re.search(rb"^Cpus_allowed_list:\s*(\S*)", status, re.MULTILINE)
    return CpuSet.parse(found[1].decode() if found else "")


def threads_by_name(process: int) -> dict[str, int]:
    """Return role to thread id, from the names that QEMU gives with ``debug-threads=on``.

    libvirt asks for such names, and its API tells no thread ids. Names are those of
    ``accel/*/*-accel-ops.c`` (``CPU 0/KVM``) and ``iothread.c`` (``IO iothread1``).
    """
    found = {}
    for thread in tasks(process):
        comm = Path(f"/proc/{process}/task/{thread}/comm")
        name = comm.read_bytes().removesuffix(b"\n")  # it may be no UTF-8, and hold any byte
        if vcpu := re.fullmatch(rb"CPU (\d+)/\w+", name):
            found[f"vCPU {int(vcpu[1])}"] = thread
        elif iothread := re.fullmatch(rb"IO iothread(\d+)", name):
            found[f"iothread {int(iothread[1])}"] = thread
    return found
