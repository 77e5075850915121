"""Disks that QEMU has open before it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.components import Launcher, processes_of, read_until

IMG, IO = "/usr/bin/qemu-img", "/usr/bin/qemu-io"

pytestmark = pytest.mark.skipif(not Path(IMG).exists(), reason="no qemu-img here: qemu-utils")


def disks_of(pid: int, folder: Path) -> dict[str, str]:
    """The files below ``folder`` that a process has open: how each is."""
    found: dict[str, str] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        path = entry.readlink()
        if path.is_relative_to(folder) and path.suffix in {".qcow2", ".raw"}:
            lines = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().splitlines()
            (flags,) = (line.split()[1] for line in lines if line.startswith("flags:"))
            found[path.name] = "rw" if int(flags, 8) & os.O_ACCMODE == os.O_RDWR else "r"
    return found


def transfer(launcher: Launcher, line: str) -> None:
    """Have QEMU read or write the disk as its guest would; what came of it is on its output."""
    device = "/machine/peripheral/disk0/virtio-backend"
    arguments = json.dumps({"command-line": f'qemu-io -d {device} "{line}"'})
    words = ["qmp", "tiny", "human-monitor-command", arguments, "--run-dir", launcher.run_dir]
    command = [str(word) for word in (*launcher.program, *words)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(ran.stdout) == ""


def test_an_image_is_read_through_all_that_it_is_built_on(launcher: Launcher) -> None:
    """Relative names and absolute ones; what is written goes to the uppermost alone."""
    folder = launcher.base / "images"
    folder.mkdir()
    (folder / "base.raw").write_bytes(b"\xaa" * (1 << 20))
    middle = f"{folder}/middle.qcow2"
    for name, base, kind in (("middle", "base.raw", "raw"), ("top", middle, "qcow2")):
        command = [IMG, "create", "-q", "-f", "qcow2", "-b", base, "-F", kind]
        subprocess.run([*command, f"{name}.qcow2"], cwd=folder, check=True)
    write = ["-c", "write -P 0xbb 64k 64k", middle]
    subprocess.run([IO, "-f", "qcow2", *write], check=True, stdout=subprocess.DEVNULL)
    before = {name: (folder / name).read_bytes() for name in ("base.raw", "middle.qcow2")}
    text = f'[[disk]]\npath = "{folder}/top.qcow2"\nformat = "qcow2"\ncache = "writeback"'
    process = launcher.start(launcher.vm("tiny", text, top="machine.accel = 'tcg'"))
    assert process.stdout is not None
    read_until(process.stdout, "state: running")
    (qemu,) = processes_of("tiny")
    assert disks_of(qemu, folder) == {"top.qcow2": "rw", "middle.qcow2": "r", "base.raw": "r"}
    for line in ("read -P 0xaa 0 64k", "read -P 0xbb 64k 64k", "write -P 0xcc 0 64k"):
        transfer(launcher, line)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (out.count("read 65536/65536"), out.count("wrote 65536/65536")) == (2, 1), out
    assert "verification failed" not in out
    assert {name: (folder / name).read_bytes() for name in before} == before
    look = [IO, "-r", "-f", "qcow2", "-c", "read -P 0xcc 0 64k", f"{folder}/top.qcow2"]
    done = subprocess.run(look, check=True, capture_output=True, text=True)
    assert "failed" not in done.stdout


def test_a_disk_that_is_not_passed_is_told(launcher: Launcher) -> None:
    """QEMU has opened it by itself, and why is said."""
    folder = launcher.base
    create = [IMG, "create", "-q", "-f", "qcow2", "-o", f"data_file={folder}/data.raw"]
    subprocess.run([*create, folder / "split.qcow2", "1M"], check=True)
    text = f'[[disk]]\npath = "{folder}/split.qcow2"\nformat = "qcow2"\ncache = "writeback"'
    ran = launcher.run("--timeout", "1", launcher.vm("tiny", text, top="machine.accel = 'tcg'"))
    assert (
        f"warning: disk[0].path: QEMU opens it itself: {folder}/split.qcow2 keeps its data in "
        "another file" in ran.stdout
    ), ran.stdout + ran.stderr
    assert ran.returncode == 3
    assert "1 s were over" in ran.stdout


def test_a_disk_may_stay_qemus(launcher: Launcher) -> None:
    """By its path, as block jobs need it; nothing is told of that."""
    disk = launcher.base / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    text = f'[[disk]]\npath = "{disk}"\ncache = "writeback"\npassed = false'
    process = launcher.start(launcher.vm("tiny", text, top="machine.accel = 'tcg'"))
    assert process.stdout is not None
    output = read_until(process.stdout, "state: running")
    (qemu,) = processes_of("tiny")
    words = Path(f"/proc/{qemu}/cmdline").read_text()
    assert (f'"filename":"{disk}"' in words, "/dev/fdset/" in words) == (True, False)
    assert "QEMU opens it itself" not in output
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that nobody but root can change, nor anybody else look into."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="kvmhooks-test-") as folder:
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_qemu_of_another_user_has_roots_disk(launcher: Launcher, closed: Path) -> None:
    """It could not even find it; an image that says what else is opened, it has to be able to."""
    disk = closed / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    disk.chmod(0o600)
    text = f'[[disk]]\npath = "{disk}"\ncache = "writeback"'
    spec = launcher.vm("tiny", text, top="[machine]\naccel = 'tcg'\nuser = 'nobody'")
    process = launcher.start(spec)
    assert process.stdout is not None
    read_until(process.stdout, "state: running")
    (qemu,) = processes_of("tiny")
    assert disks_of(qemu, closed) == {"disk.raw": "rw"}
    transfer(launcher, "write -P 0xcc 0 64k")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert disk.read_bytes()[: 1 << 16] == b"\xcc" * (1 << 16)
    subprocess.run([IMG, "create", "-q", "-f", "qcow2", closed / "disk.qcow2", "1M"], check=True)
    changed = spec.read_text().replace("disk.raw", "disk.qcow2")
    spec.write_text(changed.replace("[[disk]]", "[[disk]]\nformat = 'qcow2'"))
    ran = launcher.run(spec)
    assert ran.returncode == 1
    assert ran.stderr == (
        f"{spec}: disk[0].path: found no permission for '{closed}/disk.qcow2', "
        "expected an image to read and write\n"
    )
