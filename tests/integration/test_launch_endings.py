"""Every way in which a VM ends, for real: the states it goes through, the exit code, the words."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.integration.components import QEMU, Launcher, eventually, processes_of, read_until
from tests.integration.roms import write_rom

START = ["planned", "starting", "paused", "running"]
END = ["shutting down", "ended"]


def vm(launcher: Launcher, does: str, text: str = "", more: str = "") -> Path:
    """A VM whose firmware ``does`` one thing; its QEMU gets ``more`` arguments."""
    rom = write_rom(launcher.base / "firmware.rom", does)
    program = launcher.base / "qemu"
    program.write_text(f'#!/bin/sh\nexec {QEMU} "$@" {more}\n')
    program.chmod(0o755)
    top = f'[machine]\naccel = "tcg"\nemulator = "{program}"\n[boot]\nfirmware = "{rom}"'
    return launcher.vm("tiny", text, top=top)


def states(report: dict[str, Any]) -> list[str]:
    """The states that a VM went through."""
    return [step["state"] for step in report["states"]]


@pytest.mark.parametrize(
    ("does", "more", "code", "ending", "path"),
    [
        ("powers off", "", 0, "the guest powered off", START + END),
        ("resets once", "", 0, "the guest powered off", START + END),
        (
            "resets once",
            "-action reboot=shutdown",
            0,
            "the guest reset, and QEMU was told to end then",
            START + END,
        ),
        ("panics", "-device pvpanic", 3, "the guest panicked", START + END),
        (
            "starves its watchdog",
            "-device ib700 -action watchdog=poweroff",
            3,
            "the guest's watchdog ended it",
            [*START, "ended"],
        ),
    ],
)
def test_a_guest_ends_its_vm(
    launcher: Launcher, does: str, more: str, code: int, ending: str, path: list[str]
) -> None:
    """The guest's ending decides the exit code; each state is told as it is reached."""
    ran = launcher.run("--json", "--timeout", "20", vm(launcher, does, more=more))
    report = json.loads(ran.stdout)
    assert (ran.returncode, report["ending"], states(report)) == (code, ending, path), ran.stderr
    assert [line.split(": ")[1] for line in ran.stderr.splitlines() if line.startswith("state: ")][
        :4
    ] == START
    assert ("state: running: the guest reset" in ran.stderr) == (does == "resets once" and not more)
    assert launcher.left_behind() == []


def test_a_qemu_that_does_not_answer_is_killed(launcher: Launcher) -> None:
    """After run.hang_timeout; exit code 3, and it is said why."""
    process = launcher.start(vm(launcher, "sits", "[run]\nhang_timeout = 1"))
    assert process.stdout is not None
    read_until(process.stdout, "state: running")
    (qemu,) = processes_of("tiny")
    os.kill(qemu, signal.SIGSTOP)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3, out
    assert err.startswith("QEMU did not answer any more, and was killed (QEMU ended with status -9")
    assert "state: ended: QEMU did not answer any more, and was killed" in out
    assert (processes_of("tiny"), launcher.left_behind()) == ([], [])


def test_a_qemu_that_does_not_even_quit_is_killed(launcher: Launcher) -> None:
    """Asked to stop twice while it hangs: it is gone within seconds, exit code 3."""
    process = launcher.start("--json", vm(launcher, "sits"))
    assert process.stderr is not None
    read_until(process.stderr, "state: running")
    (qemu,) = processes_of("tiny")
    os.kill(qemu, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=40)
    report = json.loads(out)
    assert (process.returncode, states(report)) == (3, START + END), err
    assert report["ending"] == (
        "QEMU ended: SIGTERM, and the guest did not power off when it was asked to"
    )
    assert (processes_of("tiny"), launcher.left_behind()) == ([], [])


def test_a_vm_is_started_again_as_its_policy_says(launcher: Launcher) -> None:
    """After it powered off, with other threads each time, until it is asked to stop meanwhile."""
    text = "[run]\nrestart = 'always'"
    process = launcher.start("--json", vm(launcher, "powers off", text))
    assert process.stderr is not None
    output = ""
    while output.count("restart: in ") < 2:
        output += read_until(process.stderr, "\n")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert output.count("state: running\n") == 2
    assert "restart: in 1 s" in output
    assert "restart: in 2 s" in output
    outcome = json.loads(out)
    assert (process.returncode, states(outcome)) == (0, START + END), err
    assert launcher.left_behind() == []


def test_a_qemu_that_crashed_is_started_again(launcher: Launcher) -> None:
    """On failure; asked to stop, it is not started once more."""
    process = launcher.start(vm(launcher, "sits", "[run]\nrestart = 'on-failure'"))
    assert process.stdout is not None
    read_until(process.stdout, "state: running")
    (qemu,) = processes_of("tiny")
    os.kill(qemu, signal.SIGKILL)
    read_until(process.stdout, "state: running")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 3, out
    assert err.startswith("QEMU failed (QEMU ended with status -9)\n")
    assert "end: QEMU ended: SIGTERM, and the guest did not power off" in out
    assert (processes_of("tiny"), launcher.left_behind()) == ([], [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_qemu_runs_as_another_user_who_can_gain_nothing(launcher: Launcher) -> None:
    """No capability, no group of ours, no_new_privs; and it still dies with kvm-launch."""
    spec = launcher.vm("tiny", top="[machine]\naccel = 'tcg'\nuser = 'nobody'")
    process = launcher.start(spec)
    assert process.stdout is not None
    read_until(process.stdout, "state: running")
    (qemu,) = processes_of("tiny")
    lines = Path(f"/proc/{qemu}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    nobody = pwd.getpwnam("nobody")
    assert status["Uid"] == [str(nobody.pw_uid)] * 4
    assert status["Gid"] == [str(nobody.pw_gid)] * 4
    assert "0" not in status["Groups"]
    assert (status["CapEff"], status["CapPrm"]) == (["0" * 16], ["0" * 16])
    assert status["NoNewPrivs"] == ["1"]
    process.kill()
    process.communicate()
    eventually(lambda: not processes_of("tiny"))


def test_a_service_manager_is_told(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready when the guest runs, each state, how long the end may take; QEMU knows nothing."""
    path = launcher.base / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        process = launcher.start(vm(launcher, "sits"))
        messages = [manager.recv(4096).decode()]
        while "READY=1" not in messages[-1]:
            messages.append(manager.recv(4096).decode())
        (qemu,) = processes_of("tiny")
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{qemu}/environ").read_bytes()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
        manager.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while True:
                messages.append(manager.recv(4096).decode())
    assert [message.splitlines()[0] for message in messages[:2]] == [
        "STATUS=planned",
        "STATUS=starting",
    ]
    assert messages[3] == "READY=1\nSTATUS=running"
    assert messages[4] == "STATUS=shutting down: asked to power off\nEXTEND_TIMEOUT_USEC=61000000"
    assert messages[-1].startswith("STATUS=ended: QEMU ended: SIGTERM")
