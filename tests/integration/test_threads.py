"""A real QEMU's threads: told apart, scheduled by the real system calls, and given back."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.engine.knob import View
from kvmhooks.isolate.knobs import threads as knobs
from kvmhooks.isolate.record.state import RUNNING, Held, Record
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.isolate.vm.affinity import stale
from kvmhooks.isolate.vm.cgroups import Groups
from kvmhooks.isolate.vm.qemu_threads import EMULATOR, VCPU, threads_of
from kvmhooks.values import CpuSet
from tests.integration.components import QEMU, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.isolate.engine.knob import Knob

SYSTEM = System("/")
NOWHERE = Groups(base="", is_unified=True)
"""Without libvirt's groups the names tell."""

pytestmark = [
    pytest.mark.skipif(not QEMU.exists(), reason="no QEMU: apt install qemu-system-x86"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may schedule"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two CPUs are needed"),
]


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    """Two vCPUs under TCG, which do not run."""
    words = (
        "-S -nodefaults -display none -m 64 -smp 2 -accel tcg,thread=multi "
        "-name guest=kvmhooks-threads,debug-threads=on"
    )
    started = subprocess.Popen([QEMU, *words.split()], stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: len(vcpus(started.pid)) == 2, 30)
        yield started
    finally:
        started.kill()
        started.wait()


def vcpus(pid: int) -> list[int]:
    return [thread.tid for thread in threads_of(SYSTEM, NOWHERE, pid) if thread.role == VCPU]


def held(pid: int, exclusive: str) -> Held:
    """A claim of this QEMU that asks for a class."""
    process = Process.find(SYSTEM, pid)
    assert process is not None
    claim = Claim(
        driver="kvm-launch", uuid="00000000-1111-2222-3333-444444444444", name="a",
        exclusive=CpuSet.parse(exclusive), settings=(("threads.vcpus", "fifo:1"),),
    )  # fmt: skip
    return Held(claim, holder=process, state=RUNNING)


def classes(held: Held | None, pid: int, records: dict[str, Record] | None = None) -> list[Knob]:
    online = CpuSet(os.sched_getaffinity(0))
    view = View(online=online, possible=online, held=[held] if held else [], kernel=(6, 1))
    found = list(knobs.knobs(SYSTEM, view, NOWHERE, records or {}))
    assert all(f"/{pid}/" in knob.key for knob in found)
    return found


def test_a_real_vcpu_runs_first_unless_it_shares_its_cpu(qemu: subprocess.Popen[bytes]) -> None:
    """The kernel's own word for it, before, while and after; the main thread is never touched."""
    low, high = sorted(os.sched_getaffinity(0))[:2]
    tids = vcpus(qemu.pid)
    everyone = threads_of(SYSTEM, NOWHERE, qemu.pid)
    assert {thread.role for thread in everyone} == {VCPU, EMULATOR}
    for thread in everyone:
        SYSTEM.set_affinity(thread.tid, CpuSet({high if thread.tid == tids[0] else low}))
    claim = held(qemu.pid, f"{low},{high}")
    first, second = classes(claim, qemu.pid)
    assert (first.refusal, "shares CPUs" in second.refusal) == ("", True)
    first.write(SYSTEM, "fifo:1")
    assert os.sched_getscheduler(tids[0]) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    assert first.read(SYSTEM) == "fifo:1"
    assert os.sched_getscheduler(tids[1]) == os.sched_getscheduler(qemu.pid) == os.SCHED_OTHER
    claim.pins = {"0": str(high), "1": str(low)}
    assert stale(SYSTEM, claim) == ""
    SYSTEM.set_affinity(tids[0], CpuSet({low}))
    assert stale(SYSTEM, claim) == f"vCPU 0 is on {low} and was on {high}"
    record = Record("other:0", ours="fifo:1", identity=first.identity(SYSTEM))
    (left,) = classes(None, qemu.pid, {first.key: record})
    left.write(SYSTEM, left.target(record.original, View(
        online=CpuSet(), possible=CpuSet(), held=[], kernel=(6, 1))))  # fmt: skip
    assert os.sched_getscheduler(tids[0]) == os.SCHED_OTHER
