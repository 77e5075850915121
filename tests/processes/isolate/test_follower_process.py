"""The follower as a process: started by the hook, woken by what changes, gone with its VM."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvmhooks.isolate.hook import entry, follower_unit, installation
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.pci import HOSTDEV
from tests.isolate_model.tree import add_process, plant
from tests.isolate_model.world import Vm, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Tree:
    """A host on plain files with one running VM; its follower is a process of this test's own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.program: Path | None = None
        """The installed hook, where a test has installed it."""
        kernel = Kernel("plain", 8, 10)
        world = World(kernel)
        self.vm = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
        self.vm.devices = HOSTDEV
        world._launch(self.vm)
        plant(kernel, root)
        for tid, task in kernel.tasks.items():
            if task.leader == self.vm.pid:
                path = root / f"proc/{self.vm.pid}/task/{tid}"
                path.mkdir(parents=True, exist_ok=True)
                (path / "stat").write_text((root / f"proc/{tid}/stat").read_text())
        self.threads = {
            task.name: tid for tid, task in kernel.tasks.items() if task.leader == self.vm.pid
        }
        for name in ("run/libvirt/qemu", "run/irqbalance"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "run/libvirt/qemu/a.pid").write_text(str(self.vm.pid))
        self.scope = root / f"{kernel.base}/{self.vm.scope}/libvirt"
        self._log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._lines: list[str] = []

    def listen(self) -> None:
        """Have a log; a socket's path has at most 107 characters."""
        (self.root / "dev").mkdir(exist_ok=True)
        link = Path(f"/tmp/kvmhooks-log-{os.getpid()}")
        link.symlink_to(self.root / "dev")
        self._log.bind(f"{link}/log")
        link.unlink()
        self._log.setblocking(False)

    @property
    def logged(self) -> list[str]:
        """The messages since ``listen``."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._lines.append(self._log.recv(10_000).decode())
        return self._lines

    def close(self) -> None:
        self._log.close()

    def call(self, operation: str) -> None:
        words = ["a", operation, "end" if operation == "release" else "begin", "-"]
        if self.program is None:
            xml = io.BytesIO(self.vm.xml)
            assert entry.main(words, xml, io.StringIO(), str(self.root)) == 0
            return
        subprocess.run(
            [self.program, "--root", self.root, *words], input=self.vm.xml, check=True, timeout=30
        )

    @property
    def held(self) -> Any:
        path = self.root / "run/kvmhooks/state.json"
        return json.loads(path.read_text())["held"][self.vm.key]

    @property
    def follower(self) -> int:
        """Its process, or 0."""
        path = self.root / "run/kvmhooks/state.json"
        if not path.exists() or self.vm.key not in path.read_text():
            return 0
        found = self.held["follower"]
        return found[0] if found else 0

    def pin(self, thread: str, cpus: str) -> None:
        system = System(str(self.root))
        system.set_affinity(self.threads[thread], CpuSet.parse(cpus))

    def irq(self, number: int, action: str = "") -> Path:
        """A new interrupt, as a driver that requests it makes it."""
        path = self.root / f"proc/irq/{number}/smp_affinity_list"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0-7\n")
        actions = self.root / f"sys/kernel/irq/{number}/actions"
        actions.parent.mkdir(parents=True, exist_ok=True)
        actions.write_text(action + "\n")
        return path


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """With the kill switch set at the end, so that no follower outlives its test."""
    found = Tree(tmp_path)
    yield found
    pid = found.follower
    (tmp_path / "etc/kvmhooks").mkdir(parents=True)
    (tmp_path / "etc/kvmhooks/disabled").touch()
    if pid and Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGTERM)
    found.close()


def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.02)


def test_the_hook_starts_one_and_it_sees_to_everything(tree: Tree) -> None:
    """The installed file itself, as a process of its own: pins, vectors, interrupts, its end."""
    installed = installation.install(str(tree.root / "installed"), libvirt=(9, 0, 0))
    tree.program = tree.root / f"installed{installed.path}"
    tree.listen()
    for operation in ("prepare", "start", "started"):
        tree.call(operation)
    eventually(lambda: tree.follower)
    pid = tree.follower
    assert os.getsid(pid) != os.getsid(0)
    process = Path(f"/proc/{pid}")
    assert process.joinpath("cwd").readlink() == Path("/")
    assert {process.joinpath(f"fd/{n}").readlink() for n in range(3)} == {Path("/dev/null")}
    assert str(tree.program).encode() in process.joinpath("cmdline").read_bytes()
    add_process(tree.root, pid, "python3")
    vector = tree.irq(40, "vfio-msix[1](0000:01:10.0)")
    eventually(lambda: tree.held["follower"] == [pid, 77])
    tree.call("reconnect")  # libvirtd was restarted: the one that is there stays
    own = tree.irq(41, "eth0-rx-0")
    eventually(lambda: vector.read_text().strip() == "7")
    eventually(lambda: own.read_text().strip() == "0-5")
    tree.pin("qemu-kvm", "0,6")
    (tree.scope / "emulator/cpuset.cpus").write_text("0,6\n")
    eventually(lambda: any("the emulator may run on 6, " in line for line in tree.logged))
    tree.pin("CPU 1/KVM", "4")
    (tree.scope / "vcpu1/cpuset.cpus").write_text("4\n")
    eventually(lambda: tree.held["claim"]["exclusive"] == "4,6")
    eventually(lambda: vector.read_text().strip() == "4")
    assert own.read_text().strip() == "0-3,5,7"
    assert tree.follower == pid
    tree.call("release")
    eventually(lambda: not is_alive(pid))
    assert own.read_text().strip() == "0-7"
    assert not (tree.root / "run/kvmhooks/state.json").exists()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_irqbalance_that_starts_again_is_told_again(tree: Tree) -> None:
    """Its new socket is noticed as it appears."""
    for operation in ("prepare", "start", "started"):
        tree.call(operation)
    eventually(lambda: tree.follower)
    link = Path(f"/tmp/kvmhooks-irqbalance-{os.getpid()}")  # a socket's path has 107 characters
    link.symlink_to(tree.root / "run/irqbalance")
    requests: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{link}/irqbalance123.sock")
        link.unlink()
        listener.listen(8)
        listener.settimeout(15)
        while not any("settings cpus" in request for request in requests):
            peer, _ = listener.accept()
            with peer:
                requests.append(peer.recv(500).decode())
                if requests[-1] == "setup":
                    peer.sendall(b"SLEEP 10  BANNED 00000000\n")
    assert requests[-1] == "settings cpus 6-7"


def test_a_follower_without_anything_to_do_sleeps(tree: Tree) -> None:
    """No polling storm: few looks, none of which writes; and little memory."""
    for operation in ("prepare", "start", "started"):
        tree.call(operation)
    eventually(lambda: tree.follower)
    pid = tree.follower
    time.sleep(1)  # its imports and its first pass
    state = tree.root / "run/kvmhooks/state.json"
    written, spent, woken = state.stat().st_mtime_ns, cpu_ticks(pid), switches(pid)
    time.sleep(7)
    assert state.stat().st_mtime_ns == written
    assert cpu_ticks(pid) - spent <= 5
    assert switches(pid) - woken <= 12
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 30 << 10
    follower_unit.ensure(Registry(System(str(tree.root)), Store(str(tree.root))), tree.vm.key)
    assert tree.follower == pid


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def switches(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.rpartition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_the_packages_own_words_run_the_hook(tmp_path: Path) -> None:
    """kvm-launch starts a follower with them, from wherever it was installed; nothing in them would
    have to be quoted for systemd: 252 reads back another text than it was given.
    """
    done = subprocess.run(
        [*follower_unit.this_package(), "--root", str(tmp_path), "--follow", "qemu-x"],
        capture_output=True, check=False, env={}, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert follower_unit.this_package()[0] == sys.executable
    assert not set(';\n$%"\\') & set("".join(follower_unit.this_package()))
