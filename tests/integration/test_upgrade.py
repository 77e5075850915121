"""The package is replaced while a VM runs: its supervisor goes on as it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from kvm_launch.life import preload
from tests.integration.components import ROOT, Launcher, eventually, processes_of
from tests.integration.test_launch_isolated import (
    CPU,
    EXCLUSIVE,
    interrupt_twice,
    pytestmark,
    runs,
    start,
)
from tests.isolate_model.tree import snapshot

__all__ = ["pytestmark"]


def installed_apart(launcher: Launcher, root: Path, installed: Path) -> None:
    """From now on, run a copy of both packages, and isolate on a host that is a tree of files."""
    for name in ("kvmhooks", "launcher/kvm_launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, installed / Path(name).name, ignore=ignored)
    path = f"{installed}:{ROOT}"
    launcher.program = ("/usr/bin/env", f"PYTHONPATH={path}", sys.executable, "-P", "-B", "-m",
                        "tests.integration.beside", root)  # fmt: skip
    told = [*map(str, launcher.program[:-3]), "-c", "import kvmhooks; print(kvmhooks.__file__)"]
    output = subprocess.run(told, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert output == f"{installed}/kvmhooks/__init__.py\n"


def test_a_supervisor_needs_no_file_of_its_package_any_more(
    launcher: Launcher, root: Path, tmp_path: Path
) -> None:
    """Every module is replaced by one that fails while the VM runs; it is planned anew by the newer
    command, stopped, and the host restored, as if nothing had been."""
    installed = tmp_path / "installed"
    installed_apart(launcher, root, installed)
    before = snapshot(root)
    process = start(launcher, root)
    for module in installed.rglob("*.py"):
        module.write_text("raise RuntimeError('of another version')\n")
    newer = [sys.executable, "-m", "kvm_launch", "reload", "own", "--run-dir", launcher.run_dir]
    path = f"{ROOT}:{ROOT / 'launcher'}"
    done = subprocess.run([str(word) for word in newer], env={"PYTHONPATH": path},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    status, out, err = interrupt_twice(process)
    assert (status, "another version" in err) == (3, False), err
    assert "\nhost: restored\n" in out
    assert snapshot(root) == before


def test_a_supervisor_starts_its_vm_again_without_a_file_of_its_package(
    launcher: Launcher, root: Path, tmp_path: Path
) -> None:
    """The package is gone from its place when QEMU fails: ``run.restart`` starts the VM again."""
    installed = tmp_path / "installed"
    installed_apart(launcher, root, installed)
    before = snapshot(root)
    again = "[run]\nrestart = 'on-failure'\nrestart_delay = 1\n"
    process = launcher.start(launcher.vm("own", again + EXCLUSIVE, cpu=CPU))
    eventually(lambda: process.poll() is not None or runs("own"))
    (first,) = processes_of("own")
    shutil.rmtree(installed)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: processes_of("own") not in ([], [first]) and runs("own"), seconds=30)
    status, out, err = interrupt_twice(process)
    assert (status, out.count("restart: in 1 s")) == (3, 1), (out, err)
    assert snapshot(root) == before


def test_all_that_a_supervisor_may_need_is_loaded() -> None:
    """Every late import is loaded: of the rooms that are preloaded no module is left out."""
    program = (
        "import sys; from kvm_launch.life import preload; preload.preload();"
        "print(*(name for name in sys.modules if name.startswith('kvm')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'launcher'}"},
    ).stdout.split()  # fmt: skip
    there = {
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        for base in (ROOT, ROOT / "launcher")
        for name in ("kvmhooks", "kvm_launch")
        for path in (base / name).rglob("*.py")
    }
    rooms = ("kvmhooks.cli", *preload.EXISTING)
    left = {name for name in there - set(loaded) if not name.startswith(rooms)}
    assert left == {
        "kvm_launch.__main__", "kvm_launch.command", "kvmhooks.__main__", "kvmhooks.units",
        "kvmhooks.isolate.hook.__main__", "kvmhooks.isolate.hook.bundle",
        "kvmhooks.isolate.hook.installation", "kvmhooks.live", "kvmhooks.live.probe",
    } - set(loaded)  # fmt: skip
