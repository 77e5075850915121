"""kvm-launch isolates its VM's CPUs while a real QEMU runs; the host is a tree of files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.integration.components import Launcher, eventually, processes_of
from tests.isolate_model.tree import add_process, snapshot

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a dedicated CPU needs a second one"
)

CPU = 'vcpus = 1\nplacement = "dedicated"\nthreads = 1'
EXCLUSIVE = "[isolation]\nexclusive = true\n[console]\ntype = 'none'"
INTERRUPT = "proc/irq/1/smp_affinity_list"


def mask(root: Path) -> str:
    """Return the CPUs that an ordinary interrupt may go to."""
    return (root / INTERRUPT).read_text().strip()


def start(launcher: Launcher, root: Path, *, name: str = "own") -> subprocess.Popen[str]:
    """Start a VM with a CPU of its own, and wait until its guest runs and that is isolated."""
    before = mask(root)
    process = launcher.start(launcher.vm(name, EXCLUSIVE, cpu=CPU))
    eventually(lambda: process.poll() is not None or runs(name))
    assert mask(root) != before
    return process


def runs(name: str) -> bool:
    """Return whether the guest has begun: its vCPU has used 20 ms (/proc/PID/schedstat)."""
    for process in processes_of(name):
        for task in Path(f"/proc/{process}/task").iterdir():
            if (task / "comm").read_text().startswith("CPU 0/"):
                return int((task / "schedstat").read_text().split()[0]) > 20_000_000
    return False


def interrupt_twice(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Ask, then insist: a firmware does not power off."""
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_the_host_is_isolated_while_the_vm_runs_and_restored_after(
    launcher: Launcher, root: Path
) -> None:
    """Its claim is on record, held by QEMU; at the end the tree is as before."""
    before = snapshot(root)
    process = start(launcher, root)
    (qemu,) = processes_of("own")
    (held,) = Registry(System(str(root)), Store(str(root))).look().held.values()
    cpu = held.claim.exclusive
    assert (len(cpu), held.claim.driver, held.holder.pid) == (1, "kvm-launch", qemu)
    assert cpu.isdisjoint(CpuSet.parse(mask(root)))
    status, out, err = interrupt_twice(process)
    assert status == 3, err
    assert f"host: CPUs {cpu} were this VM's alone\nhost: restored\n" in out
    assert snapshot(root) == before
    assert not (root / "run/kvmhooks/state.json").exists()
    assert launcher.left_behind() == []


def test_a_supervisor_that_is_killed_takes_qemu_along_and_reconcile_restores(
    launcher: Launcher, root: Path
) -> None:
    """QEMU gets SIGTERM from the kernel; until it is gone, no second VM of the name starts."""
    before = snapshot(root)
    process = start(launcher, root)
    (qemu,) = processes_of("own")
    os.kill(qemu, signal.SIGSTOP)
    process.kill()
    process.communicate()
    second = launcher.run(launcher.vm("own", EXCLUSIVE, cpu=CPU))
    assert second.stderr == "name: found 'own', expected one that does not run already\n"
    os.kill(qemu, signal.SIGCONT)
    eventually(lambda: not processes_of("own"))
    assert mask(root) != before[INTERRUPT]
    command = [sys.executable, "-m", "kvmhooks.cli.main", "reconcile", "--root", str(root)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert snapshot(root) == before
    process = start(launcher, root)  # the dead one's files in the run directory are no matter
    assert interrupt_twice(process)[0] == 3
    assert (snapshot(root), launcher.left_behind()) == (before, [])


def test_the_next_start_restores_as_well(launcher: Launcher, root: Path) -> None:
    """The next VM after a kill gets the CPU, and leaves the host as the first one found it."""
    before = snapshot(root)
    process = start(launcher, root)
    (qemu,) = processes_of("own")
    os.kill(qemu, signal.SIGKILL)
    process.kill()
    process.communicate()
    process = launcher.start(launcher.vm("next", EXCLUSIVE, cpu=CPU))
    eventually(lambda: runs("next"))
    assert interrupt_twice(process)[0] == 3
    assert snapshot(root) == before


def test_qemu_that_is_killed_leaves_a_restored_host(launcher: Launcher, root: Path) -> None:
    """Exit code 3, with QEMU's status, and the host as before."""
    before = snapshot(root)
    process = start(launcher, root)
    (qemu,) = processes_of("own")
    os.kill(qemu, signal.SIGKILL)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, snapshot(root)) == (3, before), out + err


def test_what_cannot_be_given_back_is_exit_code_4(launcher: Launcher, root: Path) -> None:
    """And is named, with what to do; in JSON too."""
    launcher.program = (*launcher.program, "--json")
    process = start(launcher, root)
    (root / INTERRUPT).unlink()
    (root / INTERRUPT).mkdir()
    status, out, err = interrupt_twice(process)
    assert status == 4
    assert "host: NOT restored: irq/1: EISDIR\nhost: run `kvmhooks reconcile`\n" in err
    document = json.loads(out)
    assert document["isolation"]["not_restored"] == ["irq/1: EISDIR"]
    assert document["exit_code"] == 4


def test_a_refusal_changes_nothing(launcher: Launcher, root: Path) -> None:
    """All other CPUs are another VM's: one message, exit code 1, no QEMU, nothing written."""
    add_process(root, os.getpid())
    rest = CpuSet(range(1, os.cpu_count() or 2))
    other = Claim(driver="qemu", uuid="0" * 8 + "-0000-0000-0000-" + "0" * 12, name="other",
                  exclusive=rest)  # fmt: skip
    registry = Registry(System(str(root)), Store(str(root)))
    registry.prepare(other, Process.find(System("/"), os.getpid()))
    before = snapshot(root)
    ran = launcher.run(launcher.vm("own", EXCLUSIVE, cpu=CPU))
    assert (ran.returncode, snapshot(root)) == (1, before)
    assert ran.stderr.startswith("cpu.vcpus: found 1 ")
    assert list(registry.look().held) == [other.key]
    assert processes_of("own") == []


@pytest.mark.parametrize("is_strict", [False, True])
def test_with_the_kill_switch_nothing_is_isolated(
    launcher: Launcher, root: Path, *, is_strict: bool
) -> None:
    """The VM runs and is told what it lacks; one that is strict does not start."""
    (root / "etc/kvmhooks").mkdir(parents=True)
    (root / "etc/kvmhooks/disabled").touch()
    before = snapshot(root)
    text = EXCLUSIVE.replace("true", "true\nstrict = true") if is_strict else EXCLUSIVE
    ran = launcher.run("--timeout", "0.5", launcher.vm("own", text, cpu=CPU))
    assert ran.returncode == (1 if is_strict else 3)
    assert "/etc/kvmhooks/disabled exists" in (ran.stderr if is_strict else ran.stdout)
    assert snapshot(root) == before
    assert not (root / "run").exists()
