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

from kvmhooks.isolate.hook import entry, installation
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
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
    return entry.main(arguments, io.BytesIO(vm.xml), io.StringIO(), str(root))


def in_sixteen_processes(root: Path, operations: tuple[tuple[str, str], ...]) -> list[int]:
    """Each takes every sixteenth VM through the operations; the worst exit code of each."""
    children = []
    for at in range(16):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            codes = [
                call(root, vm, *operation) for vm in GUESTS[at::16] for operation in operations
            ]
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
    document = json.loads((root / "run/kvmhooks/state.json").read_text())
    assert set(document["held"]) == {vm.key for vm in GUESTS}
    assert (root / "proc/irq/1/smp_affinity_list").read_text().strip() == "0-5,106-127"
    assert in_sixteen_processes(root, LIFE[3:]) == [0] * 16
    assert snapshot(root) == before


def test_whole_lives_cross_each_other(root: Path) -> None:
    """Starts and stops of different VMs in between each other end in nothing left."""
    before = snapshot(root)
    assert in_sixteen_processes(root, LIFE) == [0] * 16
    assert snapshot(root) == before
    assert not (root / "run/kvmhooks/state.json").exists()


QEMU = 4_242
"""The pid of the first guest's QEMU."""

CHANGING = "write,?rename,renameat,?unlink,unlinkat,?mkdir,mkdirat,?rmdir"
"""The system calls that leave something behind."""


KILLS = {"prepare": 2, "start": 48, "started": 2, "release": 48}
"""The number of kills of each call: a hundred in all."""


def traced(hook: Path, root: Path, operation: str, *options: str) -> int:
    """Run the installed hook for the first guest under strace; its exit code, or the signal's."""
    done = subprocess.run(
        ["strace", "-qq", "-e", f"trace={CHANGING}", *options, str(hook),
         "--root", str(root), GUESTS[0].name, operation, dict(LIFE)[operation], "-"],
        input=GUESTS[0].xml, capture_output=True, check=False, env={}, timeout=60,
    )  # fmt: skip
    return done.returncode


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
@pytest.mark.parametrize(
    ("operation", "part", "parts"),
    [
        ("prepare", 0, 1),
        ("started", 0, 1),
        *((name, at, 4) for name in ("start", "release") for at in range(4)),
    ],
)
def test_the_real_process_is_killed_at_a_hundred_system_calls(
    operation: str, part: int, parts: int, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`strace` kills the installed hook at its Nth write, rename or removal, all along a start and
    a stop; libvirt's `release`, or `reconcile` alone, then restores the host."""
    pid_file = root / f"run/libvirt/qemu/{GUESTS[0].name}.pid"
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text(str(QEMU))
    before = snapshot(root)
    place = tmp_path_factory.mktemp("installed")
    log = place / "calls"
    hook = place / installation.install(str(place), libvirt=(9, 0, 0)).path.lstrip("/")

    def until() -> None:
        add_process(root, QEMU, "qemu-kvm")
        for earlier, sub in LIFE[: [name for name, _ in LIFE].index(operation)]:
            assert call(root, GUESTS[0], earlier, sub) == 0
        (root / f"proc/{QEMU}/stat").unlink()

    def restore() -> None:
        if operation != "release":
            call(root, GUESTS[0], "release", "end")
        Registry(System(str(root)), Store(str(root))).reconcile()

    until()
    assert traced(hook, root, operation, "-o", str(log)) == 0
    calls = [line.partition("(")[0] for line in log.read_text().splitlines()]
    restore()
    share = KILLS[operation]
    assert len(calls) >= share
    for at in (at * len(calls) // share for at in range(part, share, parts)):
        until()
        number = calls[: at + 1].count(calls[at])  # strace counts each call by itself
        kill = f"inject={calls[at]}:signal=SIGKILL:when={number}"
        died = traced(hook, root, operation, "-o", "/dev/null", "-e", kill)
        assert died == -signal.SIGKILL, f"{operation}: not killed at {calls[at]} {number}"
        restore()
        assert snapshot(root) == before, f"{operation}: killed at {calls[at]} {number}"


def test_a_holder_that_died_does_not_hold_the_lock(root: Path) -> None:
    """The kernel drops a `flock` with its holder."""
    code = (
        "import os, sys, time; from kvmhooks.isolate.record.store import Store;"
        "from kvmhooks.isolate.system.system import System; s = Store(sys.argv[1]);"
        "lock = s.lock(System(sys.argv[1]), 1); lock.__enter__(); print('held', flush=True);"
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
