"""The commands for VMs that run: what they see, what they do, and whom they leave alone."""

from __future__ import annotations

import json
import os
import pty
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.components import Launcher, eventually, processes_of
from tests.integration.roms import write_rom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def verb(launcher: Launcher, name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run ``kvm-launch VERB``."""
    command = [*launcher.program, name, *words, "--run-dir", launcher.run_dir]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def shown(launcher: Launcher) -> dict[str, str]:
    """Name and state of each VM, by ps."""
    ran = verb(launcher, "ps", "--json")
    assert ran.returncode == 0, ran.stderr
    return {vm["name"]: vm["state"] for vm in json.loads(ran.stdout)}


@pytest.fixture
def two(launcher: Launcher) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Two VMs that sit in their firmware."""
    processes = {
        name: launcher.start("--accel", "tcg", launcher.vm(name)) for name in ("one", "two")
    }
    eventually(lambda: shown(launcher) == {"one": "running", "two": "running"})
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()
    eventually(lambda: not processes_of("one") and not processes_of("two"))


def test_vms_are_listed_asked_and_stopped(
    launcher: Launcher, two: dict[str, subprocess.Popen[str]]
) -> None:
    """One is stopped while the other keeps running; what is said of them is true."""
    status = json.loads(verb(launcher, "status", "one", "--json").stdout)
    (qemu,) = processes_of("one")
    assert (status["qemu"], status["supervisor"]) == (qemu, two["one"].pid)
    assert (status["source"], status["exclusive"]) == ("one.toml", "")
    assert verb(launcher, "status", "one").stdout.startswith("one: running for ")
    assert json.loads(verb(launcher, "qmp", "one", "query-name").stdout) == {"name": "one"}
    verb(launcher, "qmp", "one", "stop")
    assert shown(launcher) == {"one": "paused", "two": "running"}
    verb(launcher, "qmp", "one", "cont")
    begun = time.monotonic()
    assert verb(launcher, "stop", "one").returncode == 0
    assert time.monotonic() - begun >= 1  # a firmware does not power off: shutdown.timeout
    assert two["one"].wait(5) == 3
    assert shown(launcher) == {"two": "running"}
    assert verb(launcher, "stop", "--now", "two").returncode == 0
    assert two["two"].wait(5) == 3
    assert (verb(launcher, "ps").stdout.split(), launcher.left_behind()) == (
        ["name", "state", "for", "CPUs", "QEMU"],
        [],
    )


MISTAKES = (
    (("stop", "three"), 1, "found no VM 'three' that runs, expected one of: one, two\n"),
    (("qmp", "one", "nonsense"), 3, "one: QEMU refused nonsense: "),
    (("qmp", "one", "query-name", "[1]"), 2, "JSON: found '[1]', expected an object"),
    (("qmp", "one", "query-name", "{"), 2, "JSON: "),
    (("console", "../one"), 1, "found no VM '../one' that runs"),
)


def test_mistakes_and_the_dead_harm_nobody(
    launcher: Launcher, two: dict[str, subprocess.Popen[str]]
) -> None:
    """Each mistake is one message with its exit code. A VM whose supervisor was killed is not
    listed, nor is its record believed: the number of its process may be somebody else's by then."""
    for words, code, message in MISTAKES:
        ran = verb(launcher, *words)
        assert (ran.returncode, ran.stdout) == (code, "")
        assert ran.stderr.startswith(message)
    assert shown(launcher) == {"one": "running", "two": "running"}
    two["one"].send_signal(signal.SIGKILL)
    two["one"].communicate()
    path = launcher.run_dir / "one" / "status.json"
    assert shown(launcher) == {"two": "running"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "supervisor": os.getpid()}))
    assert shown(launcher) == {"two": "running"}


def test_a_vm_without_a_console_has_none_to_join(launcher: Launcher) -> None:
    """It is said at once; there is nothing to wait at."""
    text = '[console]\ntype = "none"'
    process = launcher.start(launcher.vm("mute", text, top="machine.accel = 'tcg'"))
    eventually(lambda: shown(launcher) == {"mute": "running"})
    ran = verb(launcher, "console", "mute")
    why = 'it is only starting or about to end, its console.type is "none", or somebody has removed'
    where = f"found no console.sock in {launcher.run_dir / 'mute'}, expected the socket of a VM"
    message = f"mute: {where} that runs: {why} it\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", message)
    assert verb(launcher, "stop", "--now", "mute").returncode == 0
    process.communicate(timeout=60)


def test_a_socket_that_is_gone_is_named(
    launcher: Launcher, two: dict[str, subprocess.Popen[str]]
) -> None:
    """The same words and the same exit code for each: the VM runs, and nothing was changed."""
    directory = launcher.run_dir / "one"
    for name, words in (
        ("qmp-user.sock", ("qmp", "one", "query-status")),
        ("supervise.sock", ("reload", "one")),
        ("supervise.sock", ("set", "one", "tuning.shares=200")),
        ("console.sock", ("console", "one")),
    ):
        (directory / name).unlink(missing_ok=True)
        ran = verb(launcher, *words)
        message = f"one: found no {name} in {directory}, expected the socket of a VM that runs: "
        assert (ran.returncode, ran.stdout, ran.stderr[: len(message)]) == (1, "", message)
    assert shown(launcher) == {"one": "running", "two": "running"}
    assert two["one"].poll() is None


def test_a_console_is_read_on_when_there_is_nothing_more_to_type(launcher: Launcher) -> None:
    """A script with its input at an end reads to the end of the VM."""
    rom = write_rom(launcher.base / "echo.rom", "echoes")
    process = launcher.start(
        launcher.vm("talk", top=f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"')
    )
    eventually(lambda: shown(launcher) == {"talk": "running"})
    command = [*launcher.program, "console", "talk", "--run-dir", launcher.run_dir]
    reader = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    output = reader.stdout.fileno()
    assert b"K" in _until(lambda: os.read(output, 4096), b"K")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(launcher.run_dir / "talk" / "console.sock"))
        other.sendall(b"later\r")
        assert b"later" in _until(lambda: os.read(output, 4096), b"later")
    assert verb(launcher, "stop", "--now", "talk").returncode == 0
    assert reader.wait(10) == 0
    reader.stdout.close()
    process.communicate(timeout=60)


def test_a_console_can_be_attached_left_and_typed_to(launcher: Launcher) -> None:
    """Two at once see the same; what is typed reaches the guest; Ctrl-] leaves and ends nothing."""
    rom = write_rom(launcher.base / "echo.rom", "echoes")
    vm = launcher.vm("talk", top=f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"')
    process = launcher.start(vm)
    try:
        eventually(lambda: shown(launcher) == {"talk": "running"})
        other = socket.socket(socket.AF_UNIX)
        other.connect(str(launcher.run_dir / "talk" / "console.sock"))
        ours, theirs = pty.openpty()
        command = [*launcher.program, "console", "talk", "--run-dir", launcher.run_dir]
        terminal = subprocess.Popen([str(word) for word in command], stdin=theirs, stdout=theirs,
                                    stderr=subprocess.PIPE)  # fmt: skip
        os.close(theirs)
        assert _until(lambda: os.read(ours, 4096), b"K") == b"K"  # from before it was attached
        os.write(ours, b"was here\r")
        assert b"was here" in _until(lambda: other.recv(4096), b"was here")
        other.close()
        os.write(ours, b"\x1d")
        assert terminal.wait(10) == 0
        assert terminal.stderr is not None
        assert terminal.stderr.read() == b"talk: Ctrl-] leaves its console\n"
        terminal.stderr.close()
        os.close(ours)
        assert shown(launcher) == {"talk": "running"}
    finally:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_a_terminal_types_to_its_guest_until_the_escape(launcher: Launcher) -> None:
    """--console: keys go to the guest, Ctrl-C too; after Ctrl-] they mean kvm-launch again, and the
    terminal is as it was. Without a terminal there is none to type at."""
    rom = write_rom(launcher.base / "echo.rom", "echoes")
    vm = launcher.vm("typed", top=f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"')
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        ["setsid", "--ctty", *launcher.command("--console", vm)],
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    _until(lambda: os.read(ours, 4096), b"running")
    os.write(ours, b"typed\x03")
    assert b"typed\x03" in _until(lambda: os.read(ours, 4096), b"typed\x03")
    assert shown(launcher) == {"typed": "running"}
    os.write(ours, b"\x1d")
    eventually(lambda: termios.tcgetattr(theirs) == before)
    os.write(ours, b"\x03")
    _until(lambda: os.read(ours, 4096), b"shutting down")
    assert process.wait(30) == 3
    for descriptor in (ours, theirs):
        os.close(descriptor)
    ran = launcher.run("--console", vm)
    assert (ran.returncode, ran.stderr[:40]) == (2, "--console: found no terminal to type at,")
    assert launcher.left_behind() == []


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode
    != 0,
    reason="only root, and not in every container, makes mount namespaces",
)
def test_a_qemu_of_root_writes_what_it_was_given(launcher: Launcher) -> None:
    """By its own table of mounts: all is read-only but for devices and what the VM names; its disk
    is open, and needs no room. The host's table is as it was."""
    before = Path("/proc/mounts").read_text()
    images = Path("/var/lib/kvmhooks-test")
    images.mkdir()
    backups = images / "backups"
    backups.mkdir()
    try:
        (images / "a.raw").write_bytes(bytes(1 << 20))
        text = (
            f"[[disk]]\npath = '{images}/a.raw'\ncache = 'writeback'\n"
            f"[run]\nwritable = ['{backups}']"
        )
        ran = launcher.run("--detach", launcher.vm("seen", text, top="machine.accel = 'tcg'"))
        assert ran.returncode == 0, ran.stderr
        (qemu,) = processes_of("seen")
        seen = [line.split() for line in Path(f"/proc/{qemu}/mounts").read_text().splitlines()]
        options = {words[1]: words[3].split(",")[0] for words in seen}  # the last one counts
        assert Path("/proc/mounts").read_text() == before
        assert verb(launcher, "stop", "--now", "seen").returncode == 0
    finally:
        shutil.rmtree(images)
    assert {options[path] for path in ("/dev", "/tmp", str(backups))} == {"rw"}
    assert str(images) not in options
    assert (options["/"], options["/proc"]) == ("ro", "ro")


def _until(read: Callable[[], bytes], wanted: bytes) -> bytes:
    output = b""
    until = time.monotonic() + 60
    while wanted not in output and time.monotonic() < until:
        output += read()
    return output


def test_a_detached_vm_outlives_its_terminal(launcher: Launcher) -> None:
    """The command ends when the guest runs, and nothing holds its output; errors come before."""
    spec = launcher.vm("away", top="machine.accel = 'tcg'")
    ran = launcher.run("--detach", spec, timeout=30)  # it waits for the end of both pipes
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "state: running"
    assert shown(launcher) == {"away": "running"}
    (qemu,) = processes_of("away")
    supervisor = int(Path(f"/proc/{qemu}/stat").read_text().split()[3])
    assert os.getsid(supervisor) == supervisor
    again = launcher.run("--detach", spec)
    message = "name: found 'away', expected one that does not run already\n"
    assert (again.returncode, again.stderr) == (1, message)
    assert verb(launcher, "stop", "--now", "away").returncode == 0
    assert (processes_of("away"), launcher.left_behind()) == ([], [])
    assert launcher.run("--detach", "--json", spec).returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs all the other tests then")
def test_an_ordinary_user_runs_what_needs_no_root(launcher: Launcher) -> None:
    """Its VM runs below its own runtime directory, and what is left out is said."""
    user = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="kvm-launch-") as folder:
        os.chown(folder, user.pw_uid, user.pw_gid)
        spec = Path(folder, "mine.toml")
        spec.write_text(
            'name = "mine"\nmachine.accel = "tcg"\nmemory.size = "64MiB"\nshutdown.timeout = 1\n'
            'cpu = { vcpus = 1, placement = "dedicated", threads = 1 }\n'
            "isolation.exclusive = true\n"
        )
        ran = subprocess.run(
            [*map(str, launcher.program), "--timeout", "1", str(spec)],
            user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd=folder, check=False,
            env={"XDG_RUNTIME_DIR": folder, "HOME": folder}, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 3, ran.stderr
        assert (
            "warning: isolation.exclusive: only root can isolate CPUs and bind devices: threads"
            in ran.stdout
        )
        assert "vCPU 0" in ran.stdout
        assert "1 s were over" in ran.stdout
        assert os.listdir(f"{folder}/kvm-launch") == []  # noqa: PTH208 -- names


def test_a_terminal_that_is_closed_asks_the_guest_to_power_off(launcher: Launcher) -> None:
    """The VM is not cut off, and nothing of it is left; what is written to a terminal that is gone
    fails, and is no reason to fail."""
    ours, theirs = pty.openpty()
    spec = launcher.vm("window", top="machine.accel = 'tcg'", patience=2)
    heard = ["env", "--default-signal=HUP"]  # the tests may run under nohup
    process = subprocess.Popen(
        ["setsid", "--ctty", *heard, *launcher.command(spec)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    assert b"running" in _until(lambda: os.read(ours, 4096), b"running")
    os.close(ours)
    eventually(lambda: shown(launcher) == {"window": "shutting down"})
    assert process.wait(30) == 3
    assert (processes_of("window"), launcher.left_behind()) == ([], [])
