"""A real libvirtd runs the installed hook for real VMs, on a tree of files in place of the host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmhooks.isolate import installation
from tests.integration.components import QEMU, eventually
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import add_process, plant, snapshot

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <metadata><kvmhooks:vm xmlns:kvmhooks="urn:kvmhooks:1">
    <kvmhooks:isolation exclusive="yes"/></kvmhooks:vm></metadata>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='{cpu}'/><emulatorpin cpuset='{other}'/></cputune>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>
"""


class Host:
    """libvirtd, and the tree that its hook believes to be the host."""

    def __init__(self, uri: str, tree: Path) -> None:
        self.uri = uri
        self.base = Path(uri.partition("socket=")[2]).parent.parent
        self.tree = tree
        self.before: dict[str, str] = {}

    def virsh(self, *words: str, fails: bool = False) -> str:
        """What virsh says."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *words],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode != 0) is fails, done.stderr
        return done.stderr if fails else done.stdout.strip()

    def define(self, name: str, cpu: int, other: int) -> None:
        """A VM that sits in its firmware."""
        path = self.tree / f"{name}.xml"
        path.write_text(DOMAIN.format(name=name, cpu=cpu, other=other))
        self.virsh("define", str(path))
        path.unlink()

    @property
    def held(self) -> list[str]:
        """The names of the VMs that hold claims."""
        path = self.tree / "run/kvmhooks/state.json"
        if not path.exists():
            return []
        return [one["claim"]["name"] for one in json.loads(path.read_text())["held"].values()]

    def is_restored(self) -> bool:
        """Whether nothing is held and every file is as it was."""
        return not self.held and snapshot(self.tree) == self.before


@pytest.fixture
def host(libvirtd: str, tmp_path: Path) -> Iterator[Host]:
    """The hook installed into a running daemon, which is told to look for it (SIGHUP)."""
    if not QEMU.exists():
        pytest.skip("there is no QEMU here: apt install qemu-system-x86")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two CPUs are needed: one for the vCPU and one for the emulator")
    tree = tmp_path / "tree"
    plant(Kernel("plain", 8, 12), tree)
    host = Host(libvirtd, tree)
    pid = int((host.base / "libvirtd.pid").read_text())
    add_process(tree, pid)
    host.before = snapshot(tree)
    found = installation.install(str(tmp_path / "installed"), libvirt=(9, 0, 0))
    hook = host.base / "etc/hooks/qemu.d/kvmhooks"
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f'#!/bin/sh\nexec {tmp_path}/installed{found.path} --root {tree} "$@"\n')
    hook.chmod(0o755)
    os.kill(pid, signal.SIGHUP)
    yield host
    hook.unlink()
    os.kill(pid, signal.SIGHUP)
    for name in host.virsh("list", "--all", "--name").split():
        if name in host.virsh("list", "--name").split():
            host.virsh("destroy", name)
        host.virsh("undefine", name, "--managed-save")


def test_a_vm_takes_its_cpu_and_gives_it_back(host: Host) -> None:
    """Start and destroy; the daemon found the hook by SIGHUP alone."""
    host.define("owner", cpu=1, other=0)
    eventually(lambda: host.virsh("start", "owner") == "", 30)
    assert host.held == ["owner"]
    assert (host.tree / "proc/irq/1/smp_affinity_list").read_text().strip() == "0,2-7"
    host.virsh("destroy", "owner")
    eventually(host.is_restored)


def test_an_overlap_is_refused_and_libvirt_shows_why(host: Host) -> None:
    """The second VM does not start, the first one stays alone, nothing of the second remains."""
    host.define("owner", cpu=1, other=0)
    host.define("rival", cpu=1, other=0)
    host.virsh("start", "owner")
    said = host.virsh("start", "rival", fails=True)
    assert "CPUs 1 are owner's alone" in said
    assert host.held == ["owner"]
    host.virsh("destroy", "owner")
    eventually(host.is_restored)


def test_a_vm_that_is_killed_gives_its_cpu_back(host: Host) -> None:
    """`kill -9` of QEMU: libvirt notices, and calls `release`."""
    host.define("owner", cpu=1, other=0)
    host.virsh("start", "owner")
    assert host.held == ["owner"]
    pid = int((host.base / "run/qemu/owner.pid").read_text())
    os.kill(pid, signal.SIGKILL)
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
