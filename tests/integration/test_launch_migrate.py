"""A VM goes to another QEMU of this host while it runs, or stays where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.integration.components import Launcher, eventually, processes_of, read_until
from tests.integration.test_launch_verbs import shown, verb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def migrate(launcher: Launcher, spec: Path, *words: object) -> subprocess.Popen[str]:
    """Start ``kvm-launch migrate``."""
    command = [*launcher.program, "migrate", "--run-dir", launcher.run_dir, *words, spec]
    return subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def vm(launcher: Launcher) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A VM that sits in its firmware, with a disk."""
    (launcher.base / "disk.raw").write_bytes(bytes(1 << 20))
    disk = "[[disk]]\npath = 'disk.raw'\nformat = 'raw'"
    spec = launcher.vm("vm", disk, cpu="vcpus = 2", top="machine.accel = 'tcg'")
    process = launcher.start(spec)
    eventually(lambda: shown(launcher) == {"vm": "running"})
    yield spec, process
    process.kill()
    process.communicate()
    eventually(lambda: not processes_of("vm"))


def test_a_guest_goes_to_another_qemu_and_back(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]
) -> None:
    """Each time the old command ends with 0, and the new one has the name; nothing is left."""
    spec, old = vm
    for _ in range(2):
        (before,) = processes_of("vm")
        new = migrate(launcher, spec)
        out, err = old.communicate(timeout=60)
        assert (old.returncode, err) == (0, ""), out
        assert "end: the guest runs in another QEMU of this host now\n" in out
        eventually(lambda: shown(launcher) == {"vm": "running"})
        (after,) = processes_of("vm")
        assert after != before
        status = json.loads(verb(launcher, "status", "vm", "--json").stdout)
        assert (status["qemu"], status["supervisor"]) == (after, new.pid)
        asked = verb(launcher, "qmp", "vm", "query-status")
        assert json.loads(asked.stdout or "{}").get("status") == "running", asked.stderr
        old = new
    assert verb(launcher, "stop", "--now", "vm").returncode == 0
    out, err = old.communicate(timeout=60)
    assert "its guest stood still for " in out
    assert (old.returncode, err, launcher.left_behind()) == (3, "", [])


def test_it_arrives_in_the_background(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]
) -> None:
    """--detach ends when the guest runs here."""
    spec, old = vm
    new = migrate(launcher, spec, "--detach")
    assert new.wait(60) == 0
    assert old.wait(60) == 0
    eventually(lambda: shown(launcher) == {"vm": "running"})
    assert verb(launcher, "stop", "--now", "vm").returncode == 0
    eventually(lambda: launcher.left_behind() == [])
    new.communicate()


CHANGED = [
    ("vcpus = 2", "vcpus = 3", "its guest has '-smp 2,"),
    (
        'size = "64MiB"',
        'size = "96MiB"',
        "its guest has '-m size=65536k', expected '-m size=98304k', as this plan has it",
    ),
    ("[shutdown]", "[vsock]\nenabled = true\n[shutdown]", "its guest has "),
]


@pytest.mark.parametrize(("old_text", "new_text", "said"), CHANGED, ids=["vcpus", "memory", "more"])
def test_a_guest_does_not_come_where_it_would_see_a_change(
    launcher: Launcher,
    vm: tuple[Path, subprocess.Popen[str]],
    old_text: str,
    new_text: str,
    said: str,
) -> None:
    """What differs is named, and the guest runs on where it is."""
    spec, old = vm
    spec.write_text(spec.read_text().replace(old_text, new_text))
    new = migrate(launcher, spec)
    out, err = new.communicate(timeout=60)
    assert new.returncode == 1, out
    assert said in err
    assert (old.poll(), shown(launcher)) == (None, {"vm": "running"})


@pytest.mark.parametrize("whom", ["supervisor", "QEMU"])
def test_a_guest_runs_on_when_the_new_place_fails(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]], whom: str
) -> None:
    """kill -9 of the one that arrives, or of its QEMU, before the guest is there."""
    spec, old = vm
    (there,) = processes_of("vm")
    os.kill(there, signal.SIGSTOP)  # its supervisor answers, and the guest cannot go yet
    new = migrate(launcher, spec)
    assert new.stdout is not None
    read_until(new.stdout, "state: paused")
    (qemu,) = set(processes_of("vm")) - {there}
    os.kill(new.pid if whom == "supervisor" else qemu, signal.SIGKILL)
    eventually(lambda: processes_of("vm") == [there])
    os.kill(there, signal.SIGCONT)
    _, err = new.communicate(timeout=60)
    assert new.returncode == (-signal.SIGKILL if whom == "supervisor" else 3), err

    def runs() -> bool:
        return '"running": true' in verb(launcher, "qmp", "vm", "query-status").stdout

    eventually(runs, seconds=60)
    assert (processes_of("vm"), old.poll()) == ([there], None)
    assert verb(launcher, "stop", "--now", "vm").returncode == 0


def test_nobody_comes_from_nowhere(launcher: Launcher) -> None:
    """A VM that does not run, and what is no file of one VM."""
    spec = launcher.vm("vm", top="machine.accel = 'tcg'")
    new = migrate(launcher, spec)
    _, err = new.communicate(timeout=60)
    assert (new.returncode, err) == (
        1,
        "found no VM 'vm' that runs, expected one of: none\n",
    )
    new = migrate(launcher, spec, "--dry-run")
    _, err = new.communicate(timeout=60)
    assert new.returncode == 2
    assert err.startswith("migrate: found several VMs, --libvirt, ")
    assert launcher.left_behind() == []
