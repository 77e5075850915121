"""A VM goes to another QEMU of this host while it runs, or stays where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from kvmhooks.qemu.run_dir import RunDir
from tests.integration.components import Launcher, eventually, processes_of, read_until
from tests.integration.roms import write_rom
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


@pytest.mark.parametrize(
    ("old_text", "new_text", "message"), CHANGED, ids=["vcpus", "memory", "more"]
)
def test_a_guest_does_not_come_where_it_would_see_a_change(
    launcher: Launcher,
    vm: tuple[Path, subprocess.Popen[str]],
    old_text: str,
    new_text: str,
    message: str,
) -> None:
    """The difference is named, and the guest runs on where it is."""
    spec, old = vm
    spec.write_text(spec.read_text().replace(old_text, new_text))
    new = migrate(launcher, spec)
    out, err = new.communicate(timeout=60)
    assert new.returncode == 1, out
    assert message in err
    assert (old.poll(), shown(launcher)) == (None, {"vm": "running"})


@pytest.mark.parametrize("passed", ["true", "false"])
@pytest.mark.parametrize("how", ["another path", "another file"])
def test_a_guest_does_not_come_where_its_disk_is_another(
    launcher: Launcher, how: str, passed: str
) -> None:
    """Another file of the same size would ruin its data; one that was put at its path does, too."""
    (launcher.base / "one.raw").write_bytes(bytes(1 << 20))
    disk = f"[[disk]]\npath = 'one.raw'\nformat = 'raw'\npassed = {passed}"
    spec = tiny(launcher, "sits", disk)
    old = launcher.start(spec)
    eventually(lambda: shown(launcher) == {"vm": "running"})
    (launcher.base / "two.raw").write_bytes(bytes(1 << 20))
    if how == "another path":
        spec.write_text(spec.read_text().replace("one.raw", "two.raw"))
    else:
        (launcher.base / "two.raw").rename(launcher.base / "one.raw")
    new = migrate(launcher, spec)
    out, err = new.communicate(timeout=60)
    word = "drive" if (how, passed) == ("another path", "false") else "image file"
    stranger = "found another file than the one that QEMU has open there"
    message = stranger if (how, passed) == ("another file", "false") else f"its guest has '{word} "
    assert message in err, (new.returncode, out)
    assert (old.poll(), shown(launcher)) == (None, {"vm": "running"})
    assert verb(launcher, "stop", "--now", "vm").returncode == 0
    old.communicate(timeout=60)


@pytest.mark.parametrize("whom", ["supervisor", "QEMU", "Ctrl-C"])
def test_a_guest_runs_on_when_the_new_place_fails(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]], whom: str
) -> None:
    """kill -9 of the one that arrives, or of its QEMU, or Ctrl-C, before the guest is there."""
    spec, old = vm
    (there,) = processes_of("vm")
    new = migrate(launcher, spec)
    assert new.stdout is not None
    output = read_until(new.stdout, "state: starting")
    os.kill(there, signal.SIGSTOP)  # its supervisor answers, and the guest cannot go yet
    try:
        if "state: paused" not in output:
            read_until(new.stdout, "state: paused")
        (qemu,) = set(processes_of("vm")) - {there}
        if whom == "Ctrl-C":
            new.send_signal(signal.SIGINT)
        else:
            os.kill(new.pid if whom == "supervisor" else qemu, signal.SIGKILL)
        eventually(lambda: processes_of("vm") == [there])
    finally:
        os.kill(there, signal.SIGCONT)
    _, err = new.communicate(timeout=60)
    ends = {"supervisor": -signal.SIGKILL, "QEMU": 3, "Ctrl-C": 1}
    assert new.returncode == ends[whom], err

    def runs() -> bool:
        return '"running": true' in verb(launcher, "qmp", "vm", "query-status").stdout

    eventually(runs, seconds=60)
    assert (processes_of("vm"), old.poll()) == ([there], None)
    assert verb(launcher, "stop", "--now", "vm").returncode == 0


def test_a_vm_that_is_stopped_on_its_way_stops(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]
) -> None:
    """``kvm-launch stop`` has told the truth: the VM runs nowhere when that ends."""
    spec, old = vm
    (there,) = processes_of("vm")
    new = migrate(launcher, spec)
    assert new.stdout is not None
    read_until(new.stdout, "state: paused")
    assert old.stdout is not None
    os.kill(there, signal.SIGSTOP)  # the guest cannot go yet
    try:
        old.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    finally:
        os.kill(there, signal.SIGCONT)
    assert verb(launcher, "stop", "--now", "vm").returncode == 0
    assert new.wait(60) == 3
    assert processes_of("vm") == []
    for process in (old, new):
        process.communicate(timeout=60)


def tiny(launcher: Launcher, does: str, text: str = "", cpu: str = "vcpus = 2") -> Path:
    """A VM whose firmware does one thing."""
    rom = write_rom(launcher.base / "tiny.rom", does)
    top = f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"'
    return launcher.vm("vm", text, cpu=cpu, top=top)


def there(launcher: Launcher) -> int:
    """Return how many vCPUs QEMU has."""
    return len(json.loads(verb(launcher, "qmp", "vm", "query-cpus-fast").stdout))


def test_a_guest_keeps_the_vcpus_that_it_has_by_now(launcher: Launcher) -> None:
    """Those that were plugged in come along, more can be plugged there, and none is lost."""
    spec = tiny(launcher, "sits", cpu="vcpus = 4\ncurrent = 2")
    old = launcher.start(spec)
    eventually(lambda: shown(launcher) == {"vm": "running"})
    assert verb(launcher, "set", "vm", "vcpus=3").stdout == "vcpus: 2 -> 3\n"
    new = migrate(launcher, spec)
    assert old.wait(60) == 0
    eventually(lambda: shown(launcher) == {"vm": "running"})
    assert there(launcher) == 3
    assert verb(launcher, "set", "vm", "vcpus=4").stdout == "vcpus: 3 -> 4\n"
    assert verb(launcher, "stop", "--now", "vm").returncode == 0
    _, err = new.communicate(timeout=60)
    assert (new.returncode, err, launcher.left_behind()) == (3, "", [])


def test_an_emulated_guest_loses_no_vcpu_and_so_not_itself(launcher: Launcher) -> None:
    """QEMU 7.2 crashes when it migrates after one was unplugged: no owner can, and a guest that has
    ejected one itself stays where it is."""
    spec = tiny(launcher, "ejects a vCPU", cpu="vcpus = 3")
    old = launcher.start(spec)
    eventually(lambda: shown(launcher) == {"vm": "running"})
    eventually(lambda: there(launcher) == 2)
    ran = verb(launcher, "set", "vm", "vcpus=1")
    message = "vm: vcpus: found 1, expected at least 2, as there are: a QEMU that emulates the CPU "
    assert (ran.returncode, ran.stderr[: len(message)]) == (1, message)
    new = migrate(launcher, spec)
    _, err = new.communicate(timeout=60)
    assert (new.returncode, err[:24]) == (3, "vm: found vCPUs 0,2, exp")
    assert (old.poll(), shown(launcher), there(launcher)) == (None, {"vm": "running"}, 2)
    assert verb(launcher, "stop", "--now", "vm").returncode == 0
    old.communicate(timeout=60)


def test_an_emulated_guest_forgets_nothing(launcher: Launcher) -> None:
    """The writes of a guest whose memory is on its way are in the new QEMU as well."""
    spec = tiny(launcher, "remembers", cpu="vcpus = 1")
    old = launcher.start(spec)
    assert old.stdout is not None
    read_until(old.stdout, "running\n.")
    new = migrate(launcher, spec)
    assert new.stdout is not None
    assert "X" not in read_until(new.stdout, "running\n.").partition("state: running")[2]
    assert old.wait(60) == 0
    assert verb(launcher, "stop", "--now", "vm").returncode == 0
    assert "X" not in new.communicate(timeout=60)[0].partition("thread ")[0]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1, 2, 2.5, 3, 3.5, 4, 4.5, 5])
def test_an_emulated_guest_goes_while_it_boots(
    launcher: Launcher, guest: Path, seconds: float
) -> None:
    """It comes up, wherever in its boot it was: of thirty, six panicked when it did not stand
    still."""
    spec = launcher.vm(
        "vm",
        top=f'machine.accel = "tcg"\n[boot]\nkernel = "{guest}/vmlinuz"\n'
        f'initrd = "{guest}/initramfs.img"\n'
        'cmdline = "console=ttyS0 no_timer_check kvmhooks.hold"',
        cpu="vcpus = 2",
    )
    spec.write_text(spec.read_text().replace("64MiB", "256MiB"))
    old = launcher.start(spec)
    assert old.stdout is not None
    read_until(old.stdout, "state: running")
    time.sleep(seconds)
    new = migrate(launcher, spec)
    output = old.communicate(timeout=60)[0]
    assert new.stdout is not None
    if "holding until" not in output:
        output += read_until(new.stdout, "holding until")
    assert verb(launcher, "stop", "vm").returncode == 0
    output += new.communicate(timeout=60)[0]
    assert new.returncode in {0, 3}
    for word in ("panic", "BUG:", "Oops"):
        assert word not in output


def test_what_was_changed_by_hand_is_refused(launcher: Launcher) -> None:
    """A medium that was taken out is none that the new QEMU may put in again."""
    (launcher.base / "cd.iso").write_bytes(bytes(1 << 16))
    spec = tiny(launcher, "sits", "[[disk]]\npath = 'cd.iso'\ndevice = 'cdrom'")
    old = launcher.start(spec)
    eventually(lambda: shown(launcher) == {"vm": "running"})
    for command in ("blockdev-open-tray", "blockdev-remove-medium"):
        assert verb(launcher, "qmp", "vm", command, '{"id": "disk0"}').returncode == 0
    new = migrate(launcher, spec)
    _, err = new.communicate(timeout=60)
    assert (new.returncode, err[:40]) == (1, "vm: its guest has 'drive disk0: empty', ")
    assert (old.poll(), shown(launcher)) == (None, {"vm": "running"})
    assert verb(launcher, "stop", "--now", "vm").returncode == 0
    old.communicate(timeout=60)


@pytest.mark.parametrize(
    ("whom", "after"),
    [("supervisor", "it migrates to another"), ("QEMU", "state: paused: QEMU stopped it")],
)
def test_a_guest_comes_back_soon_when_the_new_place_dies(
    launcher: Launcher, whom: str, after: str
) -> None:
    """kill -9 while the memory is on its way, or when it stands still: it runs where it was.

    Where the guest has come through before the kill, it has died with its new place.
    """
    spec = tiny(launcher, "remembers", cpu="vcpus = 1")
    old = launcher.start(spec)
    assert old.stdout is not None
    read_until(old.stdout, "running\n.")
    (there,) = processes_of("vm")
    new = migrate(launcher, spec)
    read_until(old.stdout, after)
    (qemu,) = set(processes_of("vm")) - {there} or {0}
    if qemu:  # else it has come through already
        os.kill(new.pid if whom == "supervisor" else qemu, signal.SIGKILL)
    new.communicate(timeout=60)
    eventually(lambda: old.poll() == 0 or shown(launcher) == {"vm": "running"}, seconds=10)
    if old.poll() is None:
        assert processes_of("vm") == [there]
        assert verb(launcher, "stop", "--now", "vm").returncode == 0
    out, _ = old.communicate(timeout=60)
    assert "X" not in out.partition("thread ")[0]


def test_one_migrates_at_a_time(launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]) -> None:
    """A second one is told of the first, and the guest runs on."""
    with RunDir(launcher.run_dir, "vm~"):
        new = migrate(launcher, vm[0])
        _, err = new.communicate(timeout=60)
        message = "vm: found a migration of it under way, expected none\n"
        assert (new.returncode, err) == (1, message)
    assert shown(launcher) == {"vm": "running"}


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
    assert err.startswith("usage: kvm-launch migrate ")
    new = migrate(launcher, launcher.base)
    _, err = new.communicate(timeout=60)
    expected = "migrate: found a folder, expected the file of one VM that runs\n"
    assert (new.returncode, err) == (2, expected)
    assert launcher.left_behind() == []
