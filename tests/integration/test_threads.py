"""A real QEMU's threads: told apart, scheduled by the real system calls, and given back."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.groups import Groups
from kvmhooks.isolate.knob import View
from kvmhooks.isolate.knobs import threads as knobs
from kvmhooks.isolate.pins import stale
from kvmhooks.isolate.state import RUNNING, Held, Process, Record
from kvmhooks.isolate.threads import EMULATOR, VCPU, threads_of
from kvmhooks.values import CpuSet
from tests.integration.components import QEMU, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.isolate.knob import Knob

DOOR = Door("/")
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
    return [one.tid for one in threads_of(DOOR, NOWHERE, pid) if one.role == VCPU]


def held(pid: int, exclusive: str) -> Held:
    """A claim of this QEMU that asks for a class."""
    process = Process.find(DOOR, pid)
    assert process is not None
    claim = Claim(
        driver="kvm-launch", uuid="00000000-1111-2222-3333-444444444444", name="a",
        exclusive=CpuSet.parse(exclusive), settings=(("threads.vcpus", "fifo:1"),),
    )  # fmt: skip
    return Held(claim, holder=process, state=RUNNING)


def classes(one: Held | None, pid: int, records: dict[str, Record] | None = None) -> list[Knob]:
    online = CpuSet(os.sched_getaffinity(0))
    view = View(online=online, possible=online, held=[one] if one else [], kernel=(6, 1))
    found = list(knobs.knobs(DOOR, view, NOWHERE, records or {}))
    assert all(f"/{pid}/" in knob.key for knob in found)
    return found


def test_a_real_vcpu_runs_first_unless_it_shares_its_cpu(qemu: subprocess.Popen[bytes]) -> None:
    """The kernel's own word for it, before, while and after; the main thread is never touched."""
    low, high = sorted(os.sched_getaffinity(0))[:2]
    tids = vcpus(qemu.pid)
    everyone = threads_of(DOOR, NOWHERE, qemu.pid)
    assert {one.role for one in everyone} == {VCPU, EMULATOR}
    for one in everyone:
        DOOR.set_affinity(one.tid, CpuSet({high if one.tid == tids[0] else low}))
    claim = held(qemu.pid, f"{low},{high}")
    first, second = classes(claim, qemu.pid)
    assert (first.refusal, "shares CPUs" in second.refusal) == ("", True)
    first.write(DOOR, "fifo:1")
    assert os.sched_getscheduler(tids[0]) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    assert first.read(DOOR) == "fifo:1"
    assert os.sched_getscheduler(tids[1]) == os.sched_getscheduler(qemu.pid) == os.SCHED_OTHER
    claim.pins = {"0": str(high), "1": str(low)}
    assert stale(DOOR, claim) == ""
    DOOR.set_affinity(tids[0], CpuSet({low}))
    assert stale(DOOR, claim) == f"vCPU 0 is on {low} and was on {high}"
    record = Record("other:0", ours="fifo:1", identity=first.identity(DOOR))
    (left,) = classes(None, qemu.pid, {first.key: record})
    left.write(DOOR, left.target(record.original, View(
        online=CpuSet(), possible=CpuSet(), held=[], kernel=(6, 1))))  # fmt: skip
    assert os.sched_getscheduler(tids[0]) == os.SCHED_OTHER
