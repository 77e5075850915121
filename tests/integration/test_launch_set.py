"""A VM that runs is changed: its pins, its vCPUs, its balloon; what is wrong changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvmhooks.values import CpuSet
from tests.integration.components import Launcher, eventually, processes_of
from tests.integration.test_launch_verbs import shown, verb

if TYPE_CHECKING:
    from collections.abc import Iterator

CPUS = sorted(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="there is nowhere else to go")


@pytest.fixture
def vm(launcher: Launcher) -> Iterator[Launcher]:
    """A VM that sits in its firmware, with half of its vCPUs and a balloon."""
    spec = launcher.vm(
        "vm",
        "[balloon]\nenabled = true",
        cpu="vcpus = 4\ncurrent = 2\niothreads = 1",
        top="machine.accel = 'tcg'",
    )
    process = launcher.start(spec)
    eventually(lambda: shown(launcher) == {"vm": "running"})
    yield launcher
    verb(launcher, "stop", "--now", "vm")
    process.communicate(timeout=60)
    assert launcher.left_behind() == []


def qmp(launcher: Launcher, command: str) -> Any:
    return json.loads(verb(launcher, "qmp", "vm", command).stdout)


def pins(launcher: Launcher) -> dict[int, CpuSet]:
    """Return where each vCPU may run, by the kernel's word."""
    return {
        cpu["cpu-index"]: CpuSet(os.sched_getaffinity(cpu["thread-id"]))
        for cpu in qmp(launcher, "query-cpus-fast")
    }


def changed(launcher: Launcher, *words: str) -> str:
    ran = verb(launcher, "set", "vm", *words)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_threads_are_pinned_anew(vm: Launcher) -> None:
    """vCPU, iothread and emulator go where they are told, and the record says so."""
    last = CPUS[-1]
    answer = changed(vm, f"vcpu.1={last}", f"iothread.1={last}", f"emulator={CPUS[0]}")
    assert f"vCPU 1: CPUs {CpuSet(CPUS)} -> {last}\n" in answer
    assert pins(vm) == {0: CpuSet(CPUS), 1: CpuSet({last})}
    (qemu,) = processes_of("vm")
    assert os.sched_getaffinity(qemu) == {CPUS[0]}
    (iothread,) = qmp(vm, "query-iothreads")
    assert os.sched_getaffinity(iothread["thread-id"]) == {last}


def test_vcpus_come_and_find_their_places(vm: Launcher) -> None:
    """Those that were left out are plugged in, each pinned as it was planned or told before."""
    changed(vm, f"vcpu.3={CPUS[-1]}")
    assert changed(vm, "vcpus=4") == "vcpus: 2 -> 4\n"
    assert pins(vm) == {0: CpuSet(CPUS), 1: CpuSet(CPUS), 2: CpuSet(CPUS), 3: CpuSet({CPUS[-1]})}


def test_the_balloon_is_asked(vm: Launcher) -> None:
    """A firmware has no driver for it, and so much is said."""
    answer = changed(vm, "balloon=32MiB")
    assert answer == "balloon: asked for 32MiB, the guest has 64MiB so far\n"


def test_a_vm_in_its_best_place_stays(vm: Launcher) -> None:
    """reload plans anew: pins that were worse by hand are mended, and then nothing moves."""
    assert verb(vm, "reload", "vm").stdout == "it stays: nothing would be better\n"
    pid = json.loads(verb(vm, "status", "vm", "--json").stdout)["supervisor"]
    assert verb(vm, "reload", "--pid", pid).returncode == 0


REFUSED = [
    ("vcpu.9=0", 1, "vm: vCPU 9: found a VM without it, expected one of: vCPU 0, "),
    ("vcpu.0=4095", 1, "vm: vCPU 0: found CPUs 4095, expected some of "),
    ("vcpu.0=x", 2, "vcpu.0: found 'x', expected "),
    ("vcpus=5", 1, "vm: vm.toml: vcpus: found 5, expected 1 to 4"),
    ("vcpus=0", 2, "vcpus: found '0', expected how many of them"),
    ("balloon=1GiB", 1, "vm: vm.toml: balloon: found 1GiB, expected up to 64MiB"),
    ("memory=1GiB", 2, "found 'memory', expected vcpu.N, iothread.N, emulator, vcpus, balloon or"),
    ("tuning.vcpus.scheduler=fifo", 2, "found 'tuning.vcpus.scheduler', expected what can change"),
    ("tuning.shares=0", 1, "vm: vm.toml: tuning.shares: found 0, expected a whole number from 2"),
    ("tuning.shares=200", 1, "vm: it has no control group of its own: "),
    ("iothread.1=0", 2, "found 'iothread.1' twice, expected each key once"),
    ("vcpu.0", 2, "found 'vcpu.0', expected KEY=VALUE"),
]


def test_what_is_wrong_changes_nothing(vm: Launcher) -> None:
    """Each mistake is one message with its exit code, and the pins beside it are not changed."""
    before = pins(vm)
    for word, code, message in REFUSED:
        ran: subprocess.CompletedProcess[str] = verb(vm, "set", "vm", word, f"iothread.1={CPUS[0]}")
        expected = message.replace("vm.toml", f"{vm.base}/vm.toml")
        assert (ran.returncode, ran.stderr[: len(expected)]) == (code, expected), word
        assert ran.stdout == ""
    assert pins(vm) == before
    (iothread,) = qmp(vm, "query-iothreads")
    assert os.sched_getaffinity(iothread["thread-id"]) == set(CPUS)
    ran = verb(vm, "set", "none", "vcpus=1")
    assert (ran.returncode, ran.stderr) == (
        1,
        "found no VM 'none' that runs, expected one of: vm\n",
    )
    assert not Path(vm.run_dir, "none").exists()
