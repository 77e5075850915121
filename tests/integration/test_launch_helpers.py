"""kvm-launch starts, follows and ends the real virtiofsd, swtpm, passt and others beside QEMU."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_launch.prepare.helper_programs import found
from kvm_launch.spawn import privileges
from kvmhooks import units
from tests.integration.components import Launcher, eventually, processes_of, read_until

MARK = "KVMHOOKS_TEST"
WAITING = "at its start pipe"
WANTED = {"virtiofsd", "swtpm", "passt"}

pytestmark = pytest.mark.skipif(
    not found(WANTED).keys() >= WANTED, reason="apt install qemu-system-common swtpm passt"
)

ALL = """
[[filesystem]]
path = "shared"
tag = "shared"
[tpm]
model = "crb"
state = "tpm"
[[net]]
type = "passt"
mac = "52:54:00:00:00:01"
"""

HEARS = """
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
time.sleep(0.3)
listener.bind(sys.argv[1])
listener.listen(1)
print(os.getpid(), flush=True)
time.sleep(600)
"""
"""A back end that takes its time until it listens."""


STARTED: list[subprocess.Popen[str]] = []
"""Processes that are killed when a test has ended, however it did."""


def online() -> bool:
    """Return whether there is a default route: passt gives the guest this host's addresses."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return any(row[1] == "00000000" for row in rows)


ONLINE = pytest.mark.skipif(not online(), reason="passt needs a host with a default route")


@pytest.fixture(autouse=True)
def _marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Mark all that is started for a test: its folder is in the environment."""
    monkeypatch.setenv(MARK, str(tmp_path))
    (tmp_path / "hears.py").write_text(HEARS)
    yield
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()


def helpers(base: Path) -> dict[str, int]:
    """The helpers that run for a test, by their programs' names; the lowest process of each."""
    return {name: pid for pid, name in reversed(processes(base))}


def processes(base: Path) -> list[tuple[int, str]]:
    """All processes of helpers that were started for the test in ``base``."""
    there = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            is_ours = f"{MARK}={base}".encode() in (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        is_launch = any(word.endswith(b"kvm-launch") for word in words)
        is_waiting = privileges.TEXT.encode() in words
        name = WAITING if is_waiting else Path(os.fsdecode(words[0])).name
        if is_ours and not is_launch and name != "qemu-system-x86_64":
            there.append((int(entry.name), name))
    return sorted(there)


def running(launcher: Launcher, text: str, top: str = "") -> subprocess.Popen[str]:
    """A VM that runs, sits in its firmware and has helpers."""
    (launcher.base / "shared").mkdir()
    process = launcher.start(launcher.vm("helped", text, top=top))
    STARTED.append(process)
    assert process.stdout is not None
    try:
        read_until(process.stdout, "state: running")
    except AssertionError as error:
        raise AssertionError(ended(process)) from error
    # QEMU waits for none that has its socket from us: it may come to it later.
    eventually(lambda: WAITING not in helpers(launcher.base))
    return process


def status_of(pid: int) -> dict[str, str]:
    """Return the kernel's status of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def open_files(pid: int) -> int:
    """Return how many files a process has open, once that has been the same for half a second."""
    counts = [-1]
    while len(counts) < 6 or len(set(counts[-5:])) > 1:
        counts.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        time.sleep(0.1)
    return counts[-1]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and all that was said."""
    out, err = process.communicate(timeout=30)
    return process.returncode, out + err


@ONLINE
def test_helpers_live_as_long_as_their_vm(launcher: Launcher) -> None:
    """All three run, gain nothing, have no terminal, and are gone when the VM is asked to end; what
    the TPM knows stays, for its owner's eyes only."""
    process = running(launcher, ALL)
    there = helpers(launcher.base)
    assert set(there) == WANTED
    (qemu,) = processes_of("helped")
    for pid in there.values():
        assert status_of(pid)["NoNewPrivs"] == "1"
        assert os.getsid(pid) != os.getsid(0)
        assert status_of(pid)["Cpus_allowed_list"] == status_of(qemu)["Cpus_allowed_list"]
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert (code, "did not power off" in output) == (3, True), output
    assert (helpers(launcher.base), launcher.left_behind()) == ({}, [])
    state = launcher.base / "tpm"
    assert state.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in state.glob("tpm2*")] == ["tpm2-00.permall"]


@ONLINE
@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_helper_that_dies_ends_its_vm(launcher: Launcher, name: str) -> None:
    """The guest has lost a device: QEMU is told to quit, exit code 3, and the helper is named."""
    process = running(launcher, ALL)
    os.kill(helpers(launcher.base)[name], signal.SIGKILL)
    code, output = ended(process)
    at = {"virtiofsd": "filesystem[0]", "swtpm": "tpm.model", "passt": "net[0]"}[name]
    assert code == 3, output
    assert f"end: QEMU ended: {at}: {name} ended while the VM ran (signal 9)" in output
    assert (helpers(launcher.base), launcher.left_behind()) == ({}, [])


@ONLINE
def test_no_helper_outlives_a_kvm_launch_that_was_killed(launcher: Launcher) -> None:
    """Neither do QEMU and what a helper started itself; the name can be used again."""
    program = launcher.base / "hears.py"
    hears = f'\n[[helper]]\ncommand = ["{sys.executable}", "{program}", "{launcher.base}/own.sock"]'
    process = running(launcher, ALL + hears)
    assert len(processes(launcher.base)) == 5  # virtiofsd is two processes
    STARTED.remove(process)
    process.kill()
    eventually(lambda: not processes(launcher.base) and not processes_of("helped"))
    process.communicate()
    again = launcher.run("--timeout", "1", launcher.vm("helped"))
    assert "state: running" in again.stdout
    assert launcher.left_behind() == []


def test_qemu_waits_for_a_back_end_to_listen(launcher: Launcher) -> None:
    """A program that somebody names is there before QEMU, and gone after it."""
    own = launcher.base / "own.sock"
    text = (
        f'[[helper]]\ncommand = ["{sys.executable}", "{launcher.base}/hears.py", "{own}"]\n'
        f'socket = "{own}"\n'
    )
    process = running(launcher, text)
    ((pid, _),) = processes(launcher.base)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(own))
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert (code, helpers(launcher.base)) == (3, {}), output
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ('"/bin/sh", "-c", "echo no cable; exit 4"', "sh ended before QEMU was started (status 4)"),
        ('"/etc/passwd"', "helper[0].command: found '/etc/passwd', expected a program"),
    ],
)
def test_a_helper_that_does_not_start_ends_the_start(
    launcher: Launcher, command: str, message: str
) -> None:
    """Its own words tell why, and QEMU never ran."""
    spec = launcher.vm("helped", f'[[helper]]\ncommand = [{command}]\nsocket = "own.sock"')
    ran = launcher.run(spec)
    assert message in ran.stderr
    assert (ran.returncode, "no cable" in ran.stderr) == (
        (3, True) if "sh" in message else (1, False)
    )
    assert "state: paused" not in ran.stdout
    assert launcher.left_behind() == []


@ONLINE
def test_a_vm_that_is_started_again_has_new_helpers_and_nothing_piles_up(
    launcher: Launcher,
) -> None:
    """After each helper's death in turn, and after QEMU's: as many files are open as at first."""
    again = '[run]\nrestart = "always"\nrestart_delay = 1\n'
    process = running(launcher, ALL + again)
    assert process.stdout is not None
    opened, seen = open_files(process.pid), set(helpers(launcher.base).values())
    for name in ("swtpm", "qemu", "passt", "virtiofsd"):
        victim = processes_of("helped")[0] if name == "qemu" else helpers(launcher.base)[name]
        os.kill(victim, signal.SIGKILL)
        read_until(process.stdout, "state: running")
        eventually(lambda: WAITING not in helpers(launcher.base))
        fresh = set(helpers(launcher.base).values())
        assert len(fresh) == len(WANTED)
        assert not fresh & seen
        seen |= fresh
        assert open_files(process.pid) == opened, name
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert (processes(launcher.base), launcher.left_behind()) == ([], [])


def test_a_tpm_whose_state_is_in_use_is_refused(launcher: Launcher) -> None:
    """swtpm locks it: the second VM is told so by swtpm's own words."""
    text = '[tpm]\nmodel = "tis"\nstate = "tpm"'
    first = running(launcher, text)
    second = launcher.run(launcher.vm("other", text), timeout=60)
    assert second.returncode == 3
    assert "tpm.model: swtpm: " in second.stderr
    assert "lock" in second.stderr
    first.send_signal(signal.SIGTERM)
    ended(first)


def test_a_state_that_others_may_read_is_refused(launcher: Launcher) -> None:
    """A TPM holds secrets."""
    (launcher.base / "tpm").mkdir(mode=0o755)
    ran = launcher.run(launcher.vm("helped", '[tpm]\nmodel = "crb"\nstate = "tpm"'))
    assert ran.returncode == 1
    message = f"'{launcher.base}/tpm' of user {os.geteuid()}, mode 755, expected one of user"
    assert f"{launcher.base}/helped.toml: tpm.state: found {message}" in ran.stderr


@ONLINE
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ordinary_user_has_helpers_too(launcher: Launcher, number: signal.Signals) -> None:
    """virtiofsd is root in a user namespace; what it leaves out is said."""
    nobody = pwd.getpwnam("nobody")
    home = Path(launcher.base)
    for folder in (home, *home.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    launcher.run_dir = home / "own" / "run"
    (home / "own").mkdir()
    (home / "shared").mkdir()
    for folder in (home / "own", home / "shared"):
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    setpriv = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    launcher.program = (*setpriv, *launcher.program)
    spec = launcher.vm("helped", ALL.replace('"tpm"', '"own/tpm"'), top='machine.accel = "tcg"')
    spec.chmod(0o644)
    process = launcher.start(spec)
    STARTED.append(process)
    assert process.stdout is not None
    output = read_until(process.stdout, "state: running")
    eventually(lambda: WAITING not in helpers(home))
    assert "warning: filesystem[0]: every file belongs to one user of the guest" in output
    uids = {status_of(pid)["Uid"].split()[0] for pid, _ in processes(home)}
    assert uids == {str(nobody.pw_uid)}
    assert {name for _, name in processes(home)} == WANTED
    process.send_signal(number)
    ended(process)
    eventually(lambda: processes(home) == [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_with_another_user_the_tpm_is_that_users(launcher: Launcher) -> None:
    """QEMU and swtpm run as machine.user, and neither may look into kvm-launch's folder."""
    text = '[tpm]\nmodel = "crb"\nstate = "tpm"'
    for folder in (launcher.base, *launcher.base.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    process = running(launcher, text, top="[machine]\naccel = 'tcg'\nuser = 'nobody'")
    nobody = pwd.getpwnam("nobody").pw_uid
    (qemu,) = processes_of("helped")
    for pid in (qemu, helpers(launcher.base)["swtpm"]):
        assert status_of(pid)["Uid"].split() == [str(nobody)] * 4
    assert (launcher.base / "tpm").stat().st_uid == nobody
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert helpers(launcher.base) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_another_user_can_change_is_served_by_him(launcher: Launcher) -> None:
    """By way of a link of his the guest would have any folder of root's."""
    nobody = pwd.getpwnam("nobody")
    for folder in (launcher.base, *launcher.base.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    (launcher.base / "home").mkdir()
    os.chown(launcher.base / "home", nobody.pw_uid, nobody.pw_gid)
    (launcher.base / "home" / "x").symlink_to(launcher.base)
    text = '[[filesystem]]\npath = "home/x/shared"\ntag = "x"'
    process = running(launcher, text, top="[machine]\naccel = 'tcg'\nuser = 'nobody'")
    pid = helpers(launcher.base)["virtiofsd"]
    assert status_of(pid)["Uid"].split() == [str(nobody.pw_uid)] * 4
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert (code, "did not power off" in output) == (3, True), output


SWITCH = """
import socket, struct, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
qemu, _ = listener.accept()
while head := qemu.recv(12):
    request, _, size = struct.unpack("=III", head)
    data = qemu.recv(size) if size else b""
    answer = {1: struct.pack("=Q", 1 << 32), 11: data[:4] + bytes(4)}.get(request)
    if answer is not None:
        qemu.sendall(struct.pack("=III", request, 5, len(answer)) + answer)
"""
"""Enough of a vhost-user switch that QEMU starts: it has VIRTIO_F_VERSION_1, and its rings are at
their beginning (docs/interop/vhost-user.rst). Debian has no small one."""


def test_a_vhost_user_switch_is_there_before_qemu_and_its_end_is_told(launcher: Launcher) -> None:
    """QEMU talks to it before the guest runs; without it the guest has no network."""
    (launcher.base / "switch.py").write_text(SWITCH)
    path = launcher.base / "vu.sock"
    text = (
        f'[[net]]\ntype = "vhost-user"\nsocket = "{path}"\nmac = "52:54:00:00:00:01"\n'
        f'[[helper]]\ncommand = ["{sys.executable}", "{launcher.base}/switch.py", "{path}"]\n'
        f'socket = "{path}"\n'
    )
    process = running(launcher, text)
    ((pid, name),) = processes(launcher.base)
    os.kill(pid, signal.SIGTERM)
    code, output = ended(process)
    assert (code, f"QEMU ended: helper[0]: {name} ended while the VM ran" in output) == (3, True), (
        output
    )
    assert launcher.left_behind() == []


def test_the_guests_agent_has_a_socket_for_the_vms_owner(launcher: Launcher) -> None:
    """In the VM's own folder, listening before the guest runs."""
    process = running(launcher, "[guest]\nagent = true")
    socket_path = launcher.run_dir / "helped" / "agent.sock"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path))
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert launcher.left_behind() == []


@ONLINE
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")
@pytest.mark.parametrize("user", ["", "user = 'nobody'"])
def test_the_units_capabilities_are_enough(launcher: Launcher, user: str) -> None:
    """With no others left a VM has all its helpers, as root's or another user's."""
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in units.CAPABILITIES)
    launcher.program = ("setpriv", f"--bounding-set=-all,{kept}", *launcher.program)
    for folder in (launcher.base, *launcher.base.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    process = running(launcher, ALL, top=f"[machine]\naccel = 'tcg'\n{user}")
    assert set(helpers(launcher.base)) == WANTED
    (qemu,) = processes_of("helped")
    bounds = int(status_of(qemu)["CapBnd"], 16)
    assert bounds & ~int(status_of(os.getpid())["CapBnd"], 16) == 0
    assert [bounds >> number & 1 for number in (7, 17, 22, 25)] == [1, 0, 0, 0]
    """CAP_SETUID, and not CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME (linux/capability.h)."""
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert (code, "did not power off" in output) == (3, True), output


OVMF = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@pytest.mark.skipif(not OVMF.exists(), reason="there is no OVMF here: apt install ovmf")
def test_uefi_variables_are_copied_once(launcher: Launcher) -> None:
    """From the firmware's empty ones; those that are there stay as they are."""
    variables = launcher.base / "vars.fd"
    top = '[machine]\naccel = "tcg"\n[boot]\nfirmware = "uefi"\nvariables = "vars.fd"'
    spec = launcher.vm("helped", top=top)
    first = launcher.run("--timeout", "1", spec)
    assert f"kept: {variables} was made" in first.stdout
    assert variables.stat().st_mode & 0o777 == 0o600
    assert variables.stat().st_size == OVMF.stat().st_size
    shutil.copyfile(OVMF, variables)
    with variables.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    second = launcher.run("--timeout", "1", spec)
    assert "kept:" not in second.stdout
    assert variables.read_bytes()[-1] == 1
    assert [path.name for path in launcher.base.glob(".vars*")] == []
