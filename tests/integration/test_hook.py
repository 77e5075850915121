"""A real libvirtd runs the installed hook for real VMs, on a tree of files in place of the host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmhooks.isolate.hook import installation
from tests.integration.components import QEMU, eventually
from tests.integration.conftest import Daemon
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant, snapshot

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <metadata><kvmhooks:vm xmlns:kvmhooks="urn:kvmhooks:1">
    <kvmhooks:isolation exclusive="yes"/></kvmhooks:vm></metadata>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='{cpu}'/><emulatorpin cpuset='{other}'/></cputune>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>
"""


HOOK = """\
#!/bin/sh
for pid in $(cat {base}/run/qemu/*.pid {tree}.seen 2> /dev/null); do
    echo $pid >> {tree}.seen
    rm -rf {tree}/proc/$pid
    case $(cat /proc/$pid/stat 2> /dev/null) in
        "" | *") Z "*) ;;
        *) mkdir {tree}/proc/$pid && cat /proc/$pid/stat > {tree}/proc/$pid/stat;;
    esac
done
exec {hook} --root {tree} "$@"
"""
"""Shows the tree which of libvirt's processes live, and runs the installed hook on it."""


class Host:
    """libvirtd, and the tree that its hook believes to be the host."""

    def __init__(self, daemon: Daemon, tree: Path) -> None:
        self.daemon = daemon
        self.uri = daemon.uri
        self.base = daemon.base
        self.tree = tree
        self.before: dict[str, str] = {}

    def virsh(self, *words: str, fails: bool = False) -> str:
        """Return what virsh says."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *words],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode != 0) is fails, done.stderr
        return done.stderr if fails else done.stdout.strip()

    def define(self, name: str, cpu: int, other: int, boot: str = "") -> None:
        """A VM that sits in its firmware unless it is given a kernel to boot."""
        path = self.tree / f"{name}.xml"
        path.write_text(
            DOMAIN.format(name=name, cpu=cpu, other=other, boot=boot, memory=256 if boot else 64)
        )
        self.virsh("define", str(path))
        path.unlink()

    def pid(self, name: str) -> int:
        """A VM's QEMU."""
        return int((self.base / f"run/qemu/{name}.pid").read_text())

    def is_running(self, name: str) -> bool:
        """Return whether libvirt knows that it runs."""
        return name in self.virsh("list", "--name").split()

    @property
    def held(self) -> list[str]:
        """The names of the VMs that hold claims."""
        path = self.tree / "run/kvmhooks/state.json"
        if not path.exists():
            return []
        return [held["claim"]["name"] for held in json.loads(path.read_text())["held"].values()]

    def look(self) -> dict[str, str]:
        """Every file, but for the processes that are not the tree's own."""
        seen = Path(f"{self.tree}.seen")
        others = set(seen.read_text().split()) if seen.exists() else set()
        files = snapshot(self.tree)
        return {name: text for name, text in files.items() if name.split("/")[1] not in others}

    def is_restored(self) -> bool:
        """Return whether nothing is held and every file is as it was."""
        return not self.held and self.look() == self.before


@pytest.fixture
def host(daemon: Daemon, tmp_path: Path) -> Iterator[Host]:
    """The hook installed into a running daemon, which is told to look for it (SIGHUP)."""
    if not QEMU.exists():
        pytest.skip("there is no QEMU here: apt install qemu-system-x86")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two CPUs are needed: one for the vCPU and one for the emulator")
    tree = tmp_path / "tree"
    plant(Kernel("plain", 8, 12), tree)
    host = Host(daemon, tree)
    (tree / "run").mkdir(exist_ok=True)
    (tree / "run/libvirt").symlink_to(daemon.base / "run")
    host.before = host.look()
    found = installation.install(str(tmp_path / "installed"), libvirt=(9, 0, 0))
    hook = host.base / "etc/hooks/qemu.d/kvmhooks"
    hook.parent.mkdir(parents=True, exist_ok=True)
    installed = f"{tmp_path}/installed{found.path}"
    hook.write_text(HOOK.format(base=host.base, tree=tree, hook=installed))
    hook.chmod(0o755)
    os.kill(daemon.pid, signal.SIGHUP)
    yield host
    hook.unlink()
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.clear()


def test_a_vm_takes_its_cpu_and_gives_it_back(host: Host) -> None:
    """Start and destroy; the daemon found the hook by SIGHUP alone."""
    host.define("owner", cpu=1, other=0)

    def is_owned() -> bool:
        """Started with the hook: the daemon comes to the signal in its own time."""
        host.virsh("start", "owner")
        if host.held != ["owner"]:
            host.virsh("destroy", "owner")
        return host.held == ["owner"]

    eventually(is_owned, 30)
    assert (host.tree / "proc/irq/1/smp_affinity_list").read_text().strip() == "0,2-7"
    host.virsh("destroy", "owner")
    eventually(host.is_restored)


def test_an_overlap_is_refused_and_libvirt_shows_why(host: Host) -> None:
    """The second VM does not start, the first one stays alone, nothing of the second remains."""
    host.define("owner", cpu=1, other=0)
    host.define("rival", cpu=1, other=0)
    host.virsh("start", "owner")
    output = host.virsh("start", "rival", fails=True)
    assert "CPUs 1 are owner's alone" in output
    assert host.held == ["owner"]
    host.virsh("destroy", "owner")
    eventually(host.is_restored)


def test_a_vm_that_is_killed_gives_its_cpu_back(host: Host) -> None:
    """`kill -9` of QEMU: libvirt notices, and calls `release`."""
    host.define("owner", cpu=1, other=0)
    host.virsh("start", "owner")
    assert host.held == ["owner"]
    os.kill(host.pid("owner"), signal.SIGKILL)
    eventually(host.is_restored, 30)


def test_a_saved_vm_gives_its_cpu_back_and_takes_it_again(host: Host) -> None:
    """Managed save and restore."""
    host.define("owner", cpu=1, other=0)
    host.virsh("start", "owner")
    host.virsh("managedsave", "owner")
    eventually(host.is_restored)
    host.virsh("start", "owner")
    assert host.held == ["owner"]
    host.virsh("destroy", "owner")
    eventually(host.is_restored)


def test_a_guest_that_powers_off_gives_its_cpu_back(host: Host, guest: Path) -> None:
    """It does so by itself, and nobody asks libvirt for anything."""
    host.define("owner", cpu=1, other=0, boot=booting(guest))
    host.virsh("start", "owner")
    assert host.held == ["owner"]
    eventually(host.is_restored, 60)
    assert not host.is_running("owner")


def test_a_guest_that_is_shut_down_gives_its_cpu_back(host: Host, guest: Path) -> None:
    """`virsh shutdown` presses its power button, which Linux hears once it is up."""
    host.define("owner", cpu=1, other=0, boot=booting(guest, "kvmhooks.hold"))
    host.virsh("start", "owner")
    shutdown = ["virsh", "-q", "-c", host.uri, "shutdown", "owner"]

    def is_off() -> bool:
        asked = subprocess.run(shutdown, capture_output=True, check=False, timeout=60)
        time.sleep(0.5)
        return asked.returncode != 0 and not host.is_running("owner")

    assert not is_off()
    eventually(is_off, 60)
    eventually(host.is_restored)


def booting(guest: Path, words: str = "") -> str:
    """Return the XML that boots Linux in a VM, with more words for its kernel."""
    return (
        f"<kernel>{guest}/vmlinuz</kernel><initrd>{guest}/initramfs.img</initrd>"
        f"<cmdline>quiet no_timer_check {words}</cmdline>"
    )


@pytest.mark.parametrize("end", ["destroyed", "killed while nobody looks"])
def test_a_vm_outlives_libvirtd(host: Host, end: str) -> None:
    """libvirtd is killed and started again: the claim stays as long as the VM, and goes with it."""
    host.define("owner", cpu=1, other=0)
    host.virsh("start", "owner")
    host.daemon.end(signal.SIGKILL)
    if end != "destroyed":
        os.kill(host.pid("owner"), signal.SIGKILL)
    host.daemon.start()
    if end == "destroyed":
        eventually(lambda: host.is_running("owner"), 30)
        # It waits until libvirtd has connected to the VM again, which a destroy would interrupt.
        host.virsh("qemu-monitor-command", "owner", "--hmp", "info status")
        assert host.held == ["owner"]
        host.virsh("destroy", "owner")
    eventually(host.is_restored, 30)
