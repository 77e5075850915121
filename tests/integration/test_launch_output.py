"""The readers of kvm-launch's output: the VM, its signals and its end wait for none of them."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from kvm_launch.talk.tty import GUEST_BYTES
from kvm_launch.tell.status import NAME as RECORD
from tests.integration.components import ROOT, Launcher, eventually, processes_of, read_until
from tests.integration.roms import write_rom
from tests.integration.test_launch_verbs import shown, verb

SOON = 15
"""Seconds within which a VM is gone that was asked to end, and its supervisor too."""

MANY_MIB = 60
"""The memory that a process that follows VMs may grow by while they flood it."""


def vm(launcher: Launcher, does: str, name: str = "talker") -> Path:
    """A VM whose firmware ``does`` one thing."""
    rom = write_rom(launcher.base / f"{name}.rom", does)
    return launcher.vm(name, top=f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"')


@contextmanager
def started(
    launcher: Launcher, *arguments: object, out: int | IO[Any], err: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """Start kvm-launch with other outputs than pipes; it is gone at the end."""
    process = subprocess.Popen(
        launcher.command(*arguments), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'launcher'}", "TERM": "xterm"},
        text=True,
    )  # fmt: skip
    launcher._started.append(process)
    with process:
        try:
            yield process
        finally:
            process.kill()


def runs(launcher: Launcher, *names: str) -> bool:
    """Return whether these VMs run."""
    with suppress(OSError):
        return all('"running"' in (launcher.run_dir / each / RECORD).read_text() for each in names)
    return False


def floods(process: subprocess.Popen[str], amount: int) -> None:
    """Wait until a supervisor has read so many bytes (``rchar`` of proc_pid_io(5))."""

    def read() -> int:
        return int(Path(f"/proc/{process.pid}/io").read_text().split()[1])

    before = read()
    eventually(lambda: read() > before + amount, seconds=60)


def asked_by_a_signal(_: Launcher, process: subprocess.Popen[str]) -> None:
    """SIGTERM, as a service manager sends it."""
    process.send_signal(signal.SIGTERM)


def asked_by_a_verb(launcher: Launcher, _: subprocess.Popen[str]) -> None:
    """kvm-launch stop."""
    assert verb(launcher, "stop", "--now", "talker").returncode == 0


@pytest.mark.parametrize("ask", [asked_by_a_signal, asked_by_a_verb])
def test_a_reader_that_does_not_read_keeps_nobody_waiting(
    launcher: Launcher, ask: Callable[[Launcher, subprocess.Popen[str]], None]
) -> None:
    """A guest that prints for ever, a pipe that is full: whoever asks the VM to end is obeyed, and
    how much was dropped is said where somebody reads."""
    reader, writer = os.pipe()
    with started(launcher, vm(launcher, "floods"), out=writer) as process:
        os.close(writer)
        eventually(lambda: runs(launcher, "talker"), seconds=60)
        floods(process, 1 << 18)  # more than the pipe holds
        ask(launcher, process)
        eventually(lambda: not launcher.left_behind(), SOON)
        _, err = process.communicate(timeout=SOON)
    os.close(reader)
    assert (process.returncode, processes_of("talker")) == (3, [])
    assert "bytes are not written: nobody took them" in err
    assert "Traceback" not in err


def test_a_reader_that_is_back_is_told_what_it_missed(launcher: Launcher) -> None:
    """A reader is told how many bytes, and then all that comes after, to the end."""
    reader, writer = os.pipe()
    with started(launcher, vm(launcher, "floods"), out=writer) as process:
        os.close(writer)
        eventually(lambda: runs(launcher, "talker"), seconds=60)
        floods(process, GUEST_BYTES + (1 << 20))  # more than is kept
        process.send_signal(signal.SIGTERM)
        eventually(lambda: not launcher.left_behind(), SOON)
        with os.fdopen(reader, encoding="ascii") as file:
            output = file.read()
        _, err = process.communicate(timeout=SOON)
    assert (process.returncode, err) == (3, "")
    assert "bytes of output are missing: nobody took them\n" in output
    assert "\nend: QEMU ended: SIGTERM, and the guest did not power off" in output


def test_a_slow_reader_of_a_short_output_gets_all_of_it(launcher: Launcher) -> None:
    """In order, through a pipe that holds a part of it, read after the VM has ended."""
    whole = launcher.run(vm(launcher, "powers off")).stdout.splitlines()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4090)
    with started(launcher, vm(launcher, "powers off"), out=writer) as process:
        os.close(writer)
        eventually(lambda: processes_of("talker"), seconds=60)
        eventually(lambda: not launcher.left_behind(), seconds=60)
        time.sleep(0.5)
        with os.fdopen(reader, encoding="utf-8") as file:
            output = file.read()[4090:].splitlines()
        _, err = process.communicate(timeout=SOON)
    assert (process.returncode, err) == (0, "")
    assert len(output) == len(whole)
    assert [line.split(" ")[0] for line in output] == [line.split(" ")[0] for line in whole]


def test_a_reader_that_is_gone_ends_no_vm(launcher: Launcher) -> None:
    """The guest runs on; asked to end, it ends as ever."""
    process = launcher.start(vm(launcher, "floods"))
    assert process.stdout is not None
    assert process.stderr is not None
    read_until(process.stdout, "state: running")
    process.stdout.close()
    time.sleep(1)
    assert (process.poll(), shown(launcher)) == (None, {"talker": "running"})
    process.send_signal(signal.SIGTERM)
    assert process.wait(SOON) == 3
    output = process.stderr.read()
    assert output.startswith("kvm-launch: standard output: "), output
    assert output.endswith(" bytes are not written: Broken pipe\n")
    assert (processes_of("talker"), launcher.left_behind()) == ([], [])


def test_a_full_disk_below_the_log_ends_no_vm(launcher: Launcher) -> None:
    """It is the guest's own end that decides; the loss is told on standard error."""
    with (
        Path("/dev/full").open("w") as full,
        started(launcher, vm(launcher, "powers off"), out=full) as process,
    ):
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.startswith("kvm-launch: standard output: ")
    assert err.endswith(" bytes are not written: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_ends_no_vm(launcher: Launcher, closed: str) -> None:
    """Nor does a file of ours take its number."""
    launcher.program = ("/bin/sh", "-c", f'exec "$@" {closed}', "sh", *launcher.program)
    ran = launcher.run(vm(launcher, "powers off"))
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_terminal_whose_output_is_stopped_keeps_nobody_waiting(launcher: Launcher) -> None:
    """Ctrl-S, and then the end of the VM: the host is restored, the process ends."""
    ours, theirs = pty.openpty()
    with started(launcher, vm(launcher, "floods"), out=theirs, err=theirs) as process:
        output = b""
        while b"running" not in output:
            output += os.read(ours, 1 << 12)
        termios.tcflow(theirs, termios.TCOOFF)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: not launcher.left_behind(), SOON)
        assert process.wait(SOON) == 3
    os.close(theirs)
    os.close(ours)


def terminal_output(launcher: Launcher, *arguments: object) -> bytes:
    """Return all that a whole run of kvm-launch says to a terminal."""
    ours, theirs = pty.openpty()
    output = bytearray()

    def read() -> None:
        with suppress(OSError):  # EIO: all have closed it
            while chunk := os.read(ours, 1 << 12):
                output.extend(chunk)

    reading = threading.Thread(target=read)
    with started(launcher, *arguments, out=theirs, err=theirs) as process:
        os.close(theirs)
        reading.start()
        assert process.wait(60) == 0
    reading.join()
    os.close(ours)
    return bytes(output)


def test_a_terminal_obeys_nothing_that_a_guest_prints(launcher: Launcher) -> None:
    """Its words are there, its escapes, 8-bit controls and overrides are not; ours are."""
    output = terminal_output(launcher, vm(launcher, "escapes"))
    assert b"seenred\\u001b]0;title\\u0007\\u202ebidi\r\ndone\r\n" in output
    assert b"\x1b]" not in output
    assert b"\xc2\x9b" not in output
    assert b"\x1b[32m" in output  # the state «running» in its colour


def test_a_log_has_the_guests_bytes(launcher: Launcher) -> None:
    """A pipe or a file gets the console as it was."""
    ran = launcher.run(vm(launcher, "escapes"))
    assert "seen\x1b[31mred\x1b]0;title\x07\x9b5n\u202ebidi\ndone\n" in ran.stdout


def rss_mib(process: subprocess.Popen[str]) -> int:
    """Return how much memory a process has."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 >> 20


def test_several_vms_share_an_output_that_nobody_reads(launcher: Launcher) -> None:
    """One floods without a newline: the command stays small, and a signal still reaches all."""
    specs = [vm(launcher, does, name) for does, name in (("floods", "loud"), ("sits", "calm"))]
    reader, writer = os.pipe()
    with started(launcher, *specs, out=writer) as process:
        os.close(writer)
        eventually(lambda: runs(launcher, "loud", "calm"), seconds=60)
        before = rss_mib(process)
        time.sleep(2)
        assert rss_mib(process) < before + MANY_MIB
        process.send_signal(signal.SIGTERM)
        eventually(lambda: not launcher.left_behind(), SOON)
        process.communicate(timeout=SOON)
    os.close(reader)
    assert (process.returncode, processes_of("loud"), processes_of("calm")) == (3, [], [])


def test_one_vms_flood_does_not_hide_the_others(launcher: Launcher) -> None:
    """Each has room of its own, and a line without an end is passed on in pieces."""
    specs = [vm(launcher, does, name) for does, name in (("floods", "loud"), ("sits", "calm"))]
    process = launcher.start(*specs)
    assert process.stdout is not None
    output = read_until(process.stdout, "[calm] state: running")
    while "[loud] xxxx" not in output:
        output += read_until(process.stdout, "\n")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=SOON)
    assert "[calm] end: QEMU ended: SIGTERM, and the guest did not power off" in out
    assert "[loud] end: QEMU ended: SIGTERM, and the guest did not power off" in out
    assert max(map(len, out.splitlines())) < 1 << 17


def test_a_detached_vm_does_not_wait_for_a_reader(launcher: Launcher) -> None:
    """The pipe is full before it begins: the command ends all the same, and the VM runs."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)
    with started(launcher, "--detach", vm(launcher, "sits"), out=writer) as process:
        os.close(writer)
        assert process.wait(60) == 0
        assert shown(launcher) == {"talker": "running"}
        assert verb(launcher, "stop", "--now", "talker").returncode == 0
    os.close(reader)
    assert (processes_of("talker"), launcher.left_behind()) == ([], [])


def test_a_console_that_cannot_be_written_is_one_error(launcher: Launcher) -> None:
    """A full disk below `kvm-launch console`: the VM is not concerned."""
    assert launcher.run("--detach", vm(launcher, "floods")).returncode == 0
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [*map(str, launcher.program), "console", "--run-dir", str(launcher.run_dir), "talker"],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            timeout=60,
        )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (1, "standard output: No space left on device\n")
    assert shown(launcher) == {"talker": "running"}
    assert verb(launcher, "stop", "--now", "talker").returncode == 0


def test_a_console_can_be_left_whose_guest_takes_no_keys(launcher: Launcher) -> None:
    """More is pasted than anybody holds: Ctrl-] is still heard."""
    assert launcher.run("--detach", vm(launcher, "sits")).returncode == 0
    ours, theirs = pty.openpty()
    words = [*map(str, launcher.program), "console", "--run-dir", str(launcher.run_dir), "talker"]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            assert select.select([ours], [], [], SOON)[0]
            assert os.read(ours, 100).startswith(b"talker: Ctrl-] leaves its console")
            eventually(lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON)
            os.set_blocking(ours, False)
            left, until = b"x" * (1 << 20) + b"\x1d", time.monotonic() + 2 * SOON
            while left and time.monotonic() < until:
                with suppress(BlockingIOError):
                    left = left[os.write(ours, left) :]
            assert process.wait(SOON) == 0
        finally:
            process.kill()
    os.close(ours)
    os.close(theirs)
    assert verb(launcher, "stop", "--now", "talker").returncode == 0
