"""Run directories on a full file system: a start is refused, a VM that runs goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.integration.components import Launcher, processes_of, read_until
from tests.integration.roms import write_rom

MOUNTED = """
mount -t tmpfs -o "$1,mode=700" tmpfs "$2" || exit 99
shift 2
"$@"
code=$?
echo "left: $(ls -A "$0")" >&2
exit $code
"""
"""Run the rest with a tmpfs of its own at $2, and say what is left there."""

INODES = 12

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can mount a tmpfs"
)


def on_tmpfs(launcher: Launcher, options: str) -> None:
    """Have kvm-launch run in a mount namespace of its own, its run directories on a tmpfs."""
    launcher.run_dir.mkdir(mode=0o700, exist_ok=True)
    program = launcher.program
    words = ("unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTED)
    launcher.program = (*words, launcher.run_dir, options, launcher.run_dir, *program)


def vm(launcher: Launcher, does: str) -> Path:
    """A VM whose firmware ``does`` one thing."""
    rom = write_rom(launcher.base / "firmware.rom", does)
    return launcher.vm("crowded", top=f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"')


def test_a_start_that_finds_no_room_is_refused(launcher: Launcher) -> None:
    """One error names that which cannot be made, whatever it is, and nothing is left; with room
    enough it runs.
    """
    spec, program = vm(launcher, "powers off"), launcher.program
    refused = set()
    for inodes in range(1, INODES):
        launcher.program = program
        on_tmpfs(launcher, f"size=64k,nr_inodes={inodes}")
        ran = launcher.run("--quiet", spec)
        *messages, left = ran.stderr.splitlines()
        if ran.returncode == 0:
            assert (messages, left) == ([], "left: ")
            break
        assert (ran.returncode, len(messages), left) == (1, 1, "left: "), ran.stderr
        assert messages[0].startswith(str(launcher.run_dir))
        assert messages[0].endswith(": No space left on device")
        refused.add(Path(messages[0].partition(":")[0]).name)
    assert {".crowded.lock", "status.json", "qmp.sock", "supervise.sock"} <= refused
    assert ran.returncode == 0
    assert processes_of("crowded") == []


def test_a_vm_that_runs_outlives_a_full_run_directory(launcher: Launcher) -> None:
    """Its record is as old as the room for it; it is said once, and its end is its own."""
    on_tmpfs(launcher, "size=12k,nr_inodes=20")
    process = launcher.start("--json", vm(launcher, "sits"))
    assert process.stderr is not None
    read_until(process.stderr, "state: running")
    (qemu,) = processes_of("crowded")
    inside = Path(f"/proc/{qemu}/root{launcher.run_dir}")
    with (inside / "filler").open("wb", buffering=0) as filler:
        filled = iter(lambda: filler.write(bytes(4096)), 0)
        with pytest.raises(OSError, match="No space left"):
            list(filled)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")  # of unshare's shell
    os.kill(int(children.read_text()), signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "state: shutting down: asked to power off" in err
    warning = "warning: the answer of `kvm-launch status` is not up to date: "
    assert err.count(warning) == 1, err
    assert json.loads(out)["ending"].startswith("QEMU ended: SIGTERM")
    assert "left: filler\n" in err
    assert processes_of("crowded") == []
