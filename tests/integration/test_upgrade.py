"""The package is replaced while a VM runs: its supervisor goes on as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.integration.components import ROOT, Launcher
from tests.integration.test_launch_isolated import interrupt_twice, pytestmark, start
from tests.isolate_model.tree import snapshot

__all__ = ["pytestmark"]


def test_a_supervisor_needs_no_file_of_its_package_any_more(
    launcher: Launcher, root: Path, tmp_path: Path
) -> None:
    """Every module is replaced by one that fails while the VM runs; it is planned anew by the newer
    command, stopped, and the host restored, as if nothing had been."""
    installed = tmp_path / "installed"
    for name in ("kvmhooks", "launcher/kvm_launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, installed / Path(name).name, ignore=ignored)
    path = f"{installed}:{ROOT}"
    launcher.program = ("/usr/bin/env", f"PYTHONPATH={path}", sys.executable, "-P", "-B", "-m",
                        "tests.integration.beside", root)  # fmt: skip
    told = [*map(str, launcher.program[:-3]), "-c", "import kvmhooks; print(kvmhooks.__file__)"]
    said = subprocess.run(told, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said == f"{installed}/kvmhooks/__init__.py\n"
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


def test_all_that_a_supervisor_may_need_is_loaded() -> None:
    """Whatever is imported late: of the rooms that are preloaded no module is left out."""
    program = (
        "import sys; from kvm_launch import preload; preload.preload();"
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
    left = {name for name in there - set(loaded) if not name.startswith("kvmhooks.cli")}
    assert {name for name in left if not name.startswith("kvmhooks.domain")} == {
        "kvm_launch.__main__", "kvm_launch.command", "kvmhooks.__main__", "kvmhooks.isolate.bundle",
        "kvmhooks.isolate.installation", "kvmhooks.units",
    } - set(loaded)  # fmt: skip
