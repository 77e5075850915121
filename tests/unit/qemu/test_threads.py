"""Threads: which is planned where, pinned for real, and read back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from kvmhooks.errors import QemuError
from kvmhooks.placement import IothreadPin, Plan, VcpuPin
from kvmhooks.qemu import threads
from kvmhooks.qemu.threads import ThreadPin, planned_cpus
from kvmhooks.values import CpuSet
from tests.golden.cases import golden_plan

HERE = CpuSet(os.sched_getaffinity(0))
FIRST = CpuSet((HERE.first(),))

CHILD = """
import sys, threading
stay = threading.Event()
names = ["CPU 0/KVM", "CPU 1/TCG", "IO iothread3", "IO mon_iothread", "worker"]
def run(name):
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
        comm.write(name)
    ready.release()
    stay.wait()
ready = threading.Semaphore(0)
for name in names:
    threading.Thread(target=run, args=(name,), daemon=True).start()
for name in names:
    ready.acquire()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process() -> Iterator[int]:
    """A process with threads that are named as QEMU's are."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child.pid


@pytest.fixture
def plan() -> Plan:
    """Two vCPUs and an iothread on the first CPU of this machine, the rest anywhere."""
    return attrs.evolve(
        golden_plan("tiny", "laptop"),
        vcpus=(VcpuPin(0, FIRST), VcpuPin(1, FIRST)),
        iothreads=(IothreadPin(3, FIRST),),
        emulator=HERE,
    )


def test_every_role_has_its_cpus() -> None:
    """Each vCPU, each iothread and the emulator stand under their names, in this order."""
    planned = planned_cpus(golden_plan("wide", "server"))
    assert {role: str(cpus) for role, cpus in planned.items()} == {
        "vCPU 0": "4",
        "vCPU 1": "12",
        "vCPU 2": "5",
        "vCPU 3": "13",
        "vCPU 4": "6",
        "vCPU 5": "14",
        "vCPU 6": "7",
        "vCPU 7": "15",
        "iothread 2": "0,8",
        "emulator": "0,8",
    }


def test_threads_are_known_by_name(process: int) -> None:
    """vCPUs under any accelerator and numbered iothreads; the monitor's and workers are none."""
    found = threads.threads_by_name(process)
    assert sorted(found) == ["iothread 3", "vCPU 0", "vCPU 1"]
    assert set(found.values()) < set(threads.tasks(process))


def test_what_is_pinned_is_read_back(process: int, plan: Plan) -> None:
    """After pinning, each thread is where it was planned, and those without a role elsewhere."""
    found = threads.threads_by_name(process)
    threads.pin(process, plan, {**found, "vCPU 77": process})  # which the plan has not
    pins = threads.read_back(process, plan, found)
    assert pins == [
        ThreadPin("vCPU 0", found["vCPU 0"], FIRST, FIRST),
        ThreadPin("vCPU 1", found["vCPU 1"], FIRST, FIRST),
        ThreadPin("iothread 3", found["iothread 3"], FIRST, FIRST),
        ThreadPin("emulator", process, HERE, HERE),
    ]
    threads.require_planned(pins)
    others = set(threads.tasks(process)) - set(found.values())
    assert {threads.affinity(process, other) for other in others} == {HERE}


def test_a_thread_that_is_not_there_is_told(process: int, plan: Plan) -> None:
    """A role without a thread is QEMU's failure."""
    with pytest.raises(QemuError, match="vCPU 0: QEMU has no such thread"):
        threads.read_back(process, plan, {})
    with pytest.raises(QemuError, match="thread 1 of QEMU is gone: No such file or directory"):
        threads.read_back(process, plan, {"vCPU 0": 1})


def test_cpus_that_are_not_there_cannot_be_pinned_to(process: int, plan: Plan) -> None:
    """The kernel's refusal is told in its words."""
    nowhere = attrs.evolve(plan, emulator=CpuSet((4000,)))
    with pytest.raises(QemuError, match="could not be pinned: Invalid argument"):
        threads.pin(process, nowhere, {})


def test_a_thread_elsewhere_is_refused() -> None:
    """The first thread that is not where it was planned is named, with both sets."""
    right = ThreadPin("vCPU 0", 10, CpuSet((1,)), CpuSet((1,)))
    wrong = ThreadPin("vCPU 1", 11, CpuSet((2,)), CpuSet((2, 3)))
    assert [right.is_as_planned, wrong.is_as_planned] == [True, False]
    with pytest.raises(QemuError) as raised:
        threads.require_planned([right, wrong])
    assert str(raised.value) == (
        "vCPU 1 (thread 11): found on CPUs 2-3, expected 2: a cpuset keeps it there"
    )


def test_a_thread_of_any_name_is_read() -> None:
    """QEMU may call its threads what it likes: no text, or what is a line of its own elsewhere."""
    thread = threading.get_native_id()
    comm = Path(f"/proc/self/task/{thread}/comm")
    before = comm.read_bytes()
    try:
        for name in (b"\xff", b"x\rPPid:\t1", b"IO iothread7\r"):
            comm.write_bytes(name)
            assert threads.threads_by_name(os.getpid()) == {}
            assert threads.affinity(os.getpid(), thread) == HERE
    finally:
        comm.write_bytes(before)


def test_what_is_pinned_anew_is_where_it_was_planned(process: int, plan: Plan) -> None:
    """A set that is narrowed without an error is told; vCPUs that are gone are passed over."""
    found = {"vCPU 1": threads.threads_by_name(process)["vCPU 1"]}
    threads.repin(process, plan, found)
    assert threads.affinity(process, found["vCPU 1"]) == FIRST
    more = HERE | CpuSet((4095,))  # no machine here has it: the kernel leaves it out
    narrowed = attrs.evolve(plan, emulator=more)
    expected = f"emulator .*: found on CPUs {HERE}, expected {more}"
    with pytest.raises(QemuError, match=expected):
        threads.repin(process, narrowed, found)
