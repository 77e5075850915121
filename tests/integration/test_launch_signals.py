"""SIGINT at a chosen system call of kvm-launch: whatever it was about, nothing is left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.components import Launcher, processes_of
from tests.integration.roms import write_rom
from tests.isolate_model.tree import snapshot

CHANGES = (
    *("mkdir", "rmdir", "unlink", "unlinkat", "rename", "renameat", "flock", "bind"),
    *("fchmod", "wait4", "vfork", "clone3"),
)
MOMENTS = 12
OWNED = "[isolation]\nexclusive = true\n[console]\ntype = 'none'"
DEDICATED = 'vcpus = 1\nplacement = "dedicated"\nthreads = 1'
KEPT = """
[tpm]
model = "crb"
state = "tpm"
[cloud_init]
seed = "seed.iso"
[[disk]]
path = "seed.iso"
readonly = true
[[image]]
path = "disk.qcow2"
size = "4MiB"
[[disk]]
path = "disk.qcow2"
format = "qcow2"
"""


@pytest.fixture(autouse=True)
def temporary(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory for temporary files."""
    path = launcher.base / "tmp"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def describe(launcher: Launcher, text: str, cpu: str = "vcpus = 1", accel: str = "tcg") -> Path:
    """A VM that powers off at once."""
    rom = write_rom(launcher.base / "off.rom", "powers off")
    top = f'[machine]\naccel = "{accel}"\n[boot]\nfirmware = "{rom}"'
    return launcher.vm("brief", text, cpu=cpu, top=top)


def moments(trace: Path, about: str) -> list[tuple[str, int]]:
    """Some of a life's system calls that are ``about`` something, as strace counts each."""
    seen: Counter[str] = Counter()
    found = []
    for line in trace.read_text().splitlines():
        name = line.partition("(")[0]
        seen[name] += 1
        if re.search(about, line):
            found.append((name, seen[name]))
    assert found
    return found[:: 1 + len(found) // MOMENTS]


def interrupted(launcher: Launcher, vm: Path, about: str) -> Iterator[str]:
    """Live a VM's life with SIGINT at one of its system calls, for some of them; which it was.

    It ends with a code that it may have, and without a traceback, a process or a run directory.
    """
    program, trace = launcher.program, launcher.base / "trace"
    strace = "/usr/bin/strace", "-o", trace, "-e"
    launcher.program = (*strace, f"trace=openat,{','.join(CHANGES)}", *program)
    ran = launcher.run(vm)
    assert ran.returncode == 0, ran.stderr
    yield "not interrupted"
    for name, number in moments(trace, about):
        inject = f"inject={name}:signal=SIGINT:when={number}"
        launcher.program = (*strace, f"trace={name}", "-e", inject, *program)
        ran = launcher.run(vm)
        place = f"{name} {number}: {ran.stderr}"
        assert ran.returncode in {0, 1, 3, -signal.SIGINT}, place
        assert "Traceback" not in ran.stderr or "/kvm_launch/" not in ran.stderr, place
        assert (processes_of("brief"), launcher.left_behind()) == ([], []), place
        assert list((launcher.base / "tmp").iterdir()) == [], place
        yield place


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a dedicated CPU needs a second one")
def test_the_host_is_restored(launcher: Launcher, root: Path) -> None:
    """No interrupt stays where the VM had it, and no claim is on record."""
    before = snapshot(root)
    changes = rf"^({'|'.join(CHANGES)})\(|O_CREAT.*{launcher.base}"
    for place in interrupted(launcher, describe(launcher, OWNED, DEDICATED), changes):
        assert snapshot(root) == before, place
        assert not (root / "run/kvmhooks/state.json").exists(), place


def test_what_is_kept_is_whole_or_not_there(launcher: Launcher) -> None:
    """An image, cloud-init's seed and a TPM's state, which are made before the first start."""
    sizes: dict[str, int] = {}
    kept = r"disk\.qcow2|seed\.iso|/tpm\b"
    for place in interrupted(launcher, describe(launcher, KEPT), kept):
        made = {path.name for path in launcher.base.iterdir()} - {
            *("brief.toml", "off.rom", "run", "tmp", "trace")
        }
        assert made <= {"disk.qcow2", "seed.iso", "tpm"}, place
        now = {name: (launcher.base / name).stat().st_size for name in made - {"tpm"}}
        sizes = sizes or now
        assert now.items() <= sizes.items(), place
        for name in now:
            (launcher.base / name).unlink()
        shutil.rmtree(launcher.base / "tpm", ignore_errors=True)


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm to probe")
def test_a_probe_of_kvm_leaves_no_qemu(launcher: Launcher, temporary: Path) -> None:
    """Nor its folder; the verdict that it came to is whole, or the next start probes once more."""
    verdict = launcher.run_dir / ".kvm-probe.json"
    for place in interrupted(launcher, describe(launcher, "", accel="auto"), str(temporary)):
        kept = os.fsencode(temporary)
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                assert kept not in (process / "cmdline").read_bytes(), place
        verdict.unlink(missing_ok=True)
