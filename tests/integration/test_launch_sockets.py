"""The sockets of a VM that runs: whatever comes in there, the VM and its supervisor go on.

Three of them are attacked with seeded noise: the supervisor's, the QEMU monitor that is for others,
and the console.
"""

from __future__ import annotations

import array
import json
import os
import pwd
import random
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvm_launch.talk.socket_names import CONSOLE, OLDER, QMP_USER, SUPERVISE
from tests.integration.components import Launcher, eventually, processes_of
from tests.integration.roms import write_rom
from tests.integration.test_launch_verbs import shown, verb

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCKETS = (SUPERVISE, QMP_USER, CONSOLE)


@pytest.fixture
def vm(launcher: Launcher) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A VM that echoes on its console; its run directory and its supervisor."""
    rom = write_rom(launcher.base / "echo.rom", "echoes")
    top = f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"'
    process = launcher.start("--quiet", launcher.vm("noisy", top=top, cpu="vcpus = 2\ncurrent = 1"))
    out, err = process.stdout, process.stderr
    assert out is not None
    assert err is not None
    messages: list[str] = []
    readers = [
        threading.Thread(target=out.read),
        threading.Thread(target=lambda: messages.append(err.read())),
    ]
    for reader in readers:
        reader.start()
    eventually(lambda: shown(launcher) == {"noisy": "running"})
    yield launcher.run_dir / "noisy", process
    verb(launcher, "stop", "--now", "noisy")
    process.wait(60)
    for reader in readers:
        reader.join()
    assert messages == [""]
    assert launcher.left_behind() == []


def connected(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(2)
        peer.connect(str(path))
    except OSError:
        peer.close()
        raise
    return peer


def noise(chance: random.Random) -> bytes:
    """A line that is nearly a request, or none at all."""
    verbs = ["set", "reload", "monitor", "describe", "migrate", "leave", "query-status", "?"]
    values: list[object] = [
        *(None, 0, -1, 1e308, True, "", "x" * 99, "vcpus=1", "\ud800", "\x1b[2J", [], {}, [[]]),
        *(["vcpu.0=0", 7], ["balloon=1MiB"], ["tuning.a=[[" * 99], {"a": []}),
    ]
    keys = ["verb", "execute", "arguments", "words", "twin", "machine", "id", "fdname", "\0"]
    document = {chance.choice(keys): chance.choice(values) for _ in range(chance.randrange(5))}
    if chance.random() < 0.8:
        document[chance.choice(["verb", "execute"])] = chance.choice(verbs)
    text = json.dumps(document).encode()
    match chance.randrange(8):
        case 0:
            return chance.randbytes(chance.randrange(300)) + b"\n"
        case 1:
            return text[: chance.randrange(len(text) + 1)]
        case 2:
            return chance.choice([b"[", b'{"a":', b"x", b"\0"]) * chance.choice([99, 9_999, 70_000])
        case 3:
            at = chance.randrange(len(text))
            return text[:at] + chance.randbytes(3) + text[at:] + b"\n"
        case _:
            return text + b"\n"


def attack(path: Path, chance: random.Random) -> None:
    """One connection that sends noise, perhaps with descriptors, and leaves as it likes."""
    with suppress(OSError), connected(path) as peer:
        peer.settimeout(0.05)
        for _ in range(chance.randrange(4)):
            line = noise(chance)
            if path.name == CONSOLE:
                line = line[:40]  # the guest is to echo all of it
            if chance.random() < 0.2:
                rights = array.array("i", [0] * chance.randrange(1, 20))
                peer.sendmsg(
                    [line[:9_000] or b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                )
            else:
                peer.sendall(line)
        if chance.random() < 0.5:
            peer.recv(1 << 12)
        if chance.random() < 0.3:
            peer.shutdown(socket.SHUT_WR)
            peer.recv(1 << 12)


def memory_of(process: int) -> int:
    """The memory of a process, in KiB (``VmRSS`` of proc_pid_status(5))."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def _fuzz(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]], seconds: float, most: int
) -> None:
    directory, process = vm
    chance = random.Random(17)  # noqa: S311 -- the same each time
    counts = dict.fromkeys(SOCKETS, 0)
    idle = [connected(directory / SUPERVISE) for _ in range(40)]
    (qemu,) = processes_of("noisy")
    descriptors = Path(f"/proc/{process.pid}/fd")
    for name in SOCKETS * 20:
        attack(directory / name, chance)
    before = memory_of(process.pid)
    until = time.monotonic() + seconds
    while time.monotonic() < until and sum(counts.values()) < most:
        name = chance.choice(SOCKETS)
        attack(directory / name, chance)
        counts[name] += 1
    for peer in idle:
        peer.close()
    print(f"attacks, seed 17: {counts}")
    assert (process.poll(), processes_of("noisy")) == (None, [qemu])
    eventually(lambda: len(list(descriptors.iterdir())) < 40, seconds=30)
    assert memory_of(process.pid) < before + (16 << 10)
    assert shown(launcher) == {"noisy": "running"}
    ran = verb(launcher, "set", "noisy", "vcpus=2")
    assert (ran.returncode, ran.stdout[-5:]) == (0, "-> 2\n"), ran.stderr
    ran = verb(launcher, "qmp", "noisy", "query-status")
    # After enough of it QEMU 7.2 accepts nobody at that monitor any more; ours goes on.
    lost = "noisy: QEMU did not answer on its monitor within 5 s\n"
    assert '"running": true' in ran.stdout or ran.stderr == lost
    with connected(directory / CONSOLE) as peer:
        peer.sendall(b"still here")
        output = b""
        while b"still here" not in output:
            output += peer.recv(1 << 16)
    assert min(counts.values()) > 10


def test_noise_at_the_sockets_ends_nothing(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]
) -> None:
    """The supervisor, QEMU and the guest are as before, and no larger."""
    _fuzz(launcher, vm, 6, 3_000)


@pytest.mark.slow
def test_much_noise_at_the_sockets_ends_nothing(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]
) -> None:
    """Two minutes of it."""
    _fuzz(launcher, vm, 120, 1_000_000)


def test_a_monitor_that_another_client_holds(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]
) -> None:
    """One who comes then waits for a while and is told why; afterwards it is free again."""
    directory, _ = vm
    others = [connected(directory / QMP_USER)]
    with suppress(BlockingIOError):
        while len(others) < 9:  # until the queue is full
            other = socket.socket(socket.AF_UNIX)
            other.setblocking(False)
            others.append(other)
            other.connect(str(directory / QMP_USER))
    ran = verb(launcher, "qmp", "noisy", "query-status")
    message = "noisy: another client has held its monitor for 5 s\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "", message)
    for other in others:
        other.close()
    assert verb(launcher, "qmp", "noisy", "query-status").returncode == 0


@pytest.mark.parametrize("name", OLDER)
def test_the_names_of_the_version_before(vm: tuple[Path, subprocess.Popen[str]], name: str) -> None:
    """Its clients look for these: the same answer comes there as at today's."""
    directory, _ = vm
    answers = []
    for path in (directory / name, directory / OLDER[name]):
        with connected(path) as peer, peer.makefile("rwb") as stream:
            stream.write(b'{"verb": "?"}\n')
            stream.flush()
            answers.append(json.loads(stream.readline()))
    assert answers[0] == answers[1]


def test_a_supervisor_of_the_version_before(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]
) -> None:
    """It has the older names alone: its QEMU answers there, and it does itself."""
    directory, _ = vm
    for name, older in OLDER.items():
        (directory / name).rename(directory / older)
    ran = verb(launcher, "qmp", "noisy", "query-status")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["running"] is True
    ran = verb(launcher, "reload", "noisy")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_request_without_its_words(vm: tuple[Path, subprocess.Popen[str]]) -> None:
    """It is answered, and says what is missing."""
    directory, _ = vm
    expected = "expected a list of KEY=VALUE"
    for words, found in ({}, "None"), ({"words": 1}, "1"), ({"words": [1]}, "[1]"):
        with connected(directory / SUPERVISE) as peer:
            peer.sendall(json.dumps({"verb": "set", **words}).encode() + b"\n")
            answer = json.loads(peer.recv(1 << 16))
        assert answer == {"error": f"words: found {found}, {expected}", "code": 2}


def test_a_console_has_room_for_so_many(vm: tuple[Path, subprocess.Popen[str]]) -> None:
    """One who comes then is told so; those who are there go on."""
    directory, _ = vm
    there = [connected(directory / CONSOLE) for _ in range(16)]
    with connected(directory / CONSOLE) as peer:
        assert peer.recv(99) == b"found 16 others at this console, expected fewer\r\n"
    there[0].sendall(b"?")
    eventually(lambda: b"?" in there[15].recv(99))
    for peer in there:
        peer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_stranger_reaches_no_socket(vm: tuple[Path, subprocess.Popen[str]]) -> None:
    """The run directory is its owner's alone."""
    directory, _ = vm
    user = pwd.getpwnam("nobody")
    script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for name in (*SOCKETS, "qmp.sock"):
        ran = subprocess.run(
            ["python3", "-c", script, str(directory / name)],
            user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert "PermissionError" in ran.stderr


def test_a_supervisor_that_hangs_keeps_nobody_for_ever(
    launcher: Launcher, vm: tuple[Path, subprocess.Popen[str]]
) -> None:
    """All who ask it end with a message, and when it goes on it does not do what was asked."""
    _, process = vm
    spec = launcher.base / "noisy.toml"
    process.send_signal(signal.SIGSTOP)
    try:
        command = [*launcher.program, "migrate", "--run-dir", launcher.run_dir, spec]
        ran = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                             check=False, timeout=50, stdin=subprocess.DEVNULL)  # fmt: skip
        assert (ran.returncode, ran.stderr) == (1, "noisy: its supervisor: no answer within 10 s\n")
    finally:
        process.send_signal(signal.SIGCONT)
    assert shown(launcher) == {"noisy": "running"}
