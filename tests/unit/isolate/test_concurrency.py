"""Fifty VMs start and stop at once through sixteen processes, on one tree of files."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvmhooks.isolate import hook
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.isolate.store import Store
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import add_process, plant, snapshot
from tests.isolate_model.world import Vm

if TYPE_CHECKING:
    from pathlib import Path

LIFE = (("prepare", "begin"), ("start", "begin"), ("started", "begin"), ("release", "end"))
GUESTS = [Vm(f"vm{at}", CpuSet({6 + 2 * at, 7 + 2 * at}), CpuSet({0, 1})) for at in range(50)]


def call(root: Path, vm: Vm, operation: str, sub: str) -> int:
    """One hook call in this process."""
    arguments = [vm.name, operation, sub, "-"]
    return hook.main(arguments, io.BytesIO(vm.xml), io.StringIO(), str(root))


def in_sixteen_processes(root: Path, operations: tuple[tuple[str, str], ...]) -> list[int]:
    """Each takes every sixteenth VM through the operations; the worst exit code of each."""
    children = []
    for at in range(16):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            codes = [call(root, vm, *one) for vm in GUESTS[at::16] for one in operations]
            os._exit(max(codes))
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """128 CPUs and 64 interrupts; the processes that will run hooks are alive in the tree."""
    plant(Kernel("plain", 128, 64), tmp_path)
    return tmp_path


def test_fifty_vms_start_and_stop_at_once(root: Path) -> None:
    """No update is lost: all claims are there after the starts, none after the stops."""
    before = snapshot(root)
    assert in_sixteen_processes(root, LIFE[:3]) == [0] * 16
    said = json.loads((root / "run/kvmhooks/state.json").read_text())
    assert set(said["held"]) == {vm.key for vm in GUESTS}
    assert (root / "proc/irq/1/smp_affinity_list").read_text().strip() == "0-5,106-127"
    assert in_sixteen_processes(root, LIFE[3:]) == [0] * 16
    assert snapshot(root) == before


def test_whole_lives_cross_each_other(root: Path) -> None:
    """Starts and stops of different VMs in between each other end in nothing left."""
    before = snapshot(root)
    assert in_sixteen_processes(root, LIFE) == [0] * 16
    assert snapshot(root) == before
    assert not (root / "run/kvmhooks/state.json").exists()


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
@pytest.mark.parametrize("operation", ["start", "release"])
def test_the_real_process_is_killed_at_its_system_calls(root: Path, operation: str) -> None:
    """`strace` kills it at the Nth write or rename; `reconcile` then restores the host."""
    vm = GUESTS[0]
    before = snapshot(root)
    sub = dict(LIFE)[operation]
    died = 0
    for number in range(1, 400, 7):
        for one, its in LIFE[: 1 if operation == "start" else 3]:
            assert call(root, vm, one, its) == 0
        done = subprocess.run(
            ["strace", "-qq", "-o", "/dev/null", "-e", "trace=write,rename",
             "-e", f"inject=write,rename:signal=SIGKILL:when={number}",
             sys.executable, "-m", "kvmhooks.isolate.hook", "--root", str(root), vm.name,
             operation, sub, "-"],
            input=vm.xml, capture_output=True, check=False,
        )  # fmt: skip
        died += done.returncode != 0
        call(root, vm, "release", "end")
        Keeper(Door(str(root)), Store(str(root))).reconcile()
        assert snapshot(root) == before, f"killed at {number}"
        if done.returncode == 0:
            break
    assert died >= 5


def test_a_holder_that_died_does_not_hold_the_lock(root: Path) -> None:
    """The kernel drops a `flock` with its holder."""
    code = (
        "import os, sys, time; from kvmhooks.isolate.store import Store;"
        "from kvmhooks.isolate.door import Door; s = Store(sys.argv[1]);"
        "lock = s.lock(Door(sys.argv[1]), 1); lock.__enter__(); print('held', flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    add_process(root, os.getpid())
    assert call(root, GUESTS[0], "prepare", "begin") == 0
