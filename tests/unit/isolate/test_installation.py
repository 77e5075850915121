"""The hook as one file, installed, chained, run by the system's interpreter, and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmhooks.cli.hooks import main
from kvmhooks.errors import IsolationError
from kvmhooks.isolate import bundle, installation
from kvmhooks.values import CpuSet
from kvmhooks.version import VERSION
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant, snapshot
from tests.isolate_model.world import Vm

NEW, OLD = (9, 0, 0), (6, 4, 0)
GUEST = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
SYSTEMS = "/usr/bin/python3"


def install(root: Path, libvirt: tuple[int, ...] = NEW) -> Path:
    """Install below ``root`` and return the file."""
    found = installation.install(str(root), SYSTEMS, libvirt)
    return root / found.path.lstrip("/")


def run(hook: Path, root: Path, operation: str, sub: str) -> subprocess.CompletedProcess[bytes]:
    """Run the installed file on a tree, without anything of this environment."""
    return subprocess.run(
        [str(hook), "--root", str(root), "a", operation, sub, "-"],
        input=GUEST.xml, capture_output=True, check=False, cwd="/", env={}, timeout=30,
    )  # fmt: skip


def test_the_file_alone_carries_a_vm_through_its_life(tmp_path: Path) -> None:
    """With the system's interpreter, isolated from the environment and without site-packages."""
    hook = install(tmp_path / "host")
    assert hook.read_text().startswith(f"#!{SYSTEMS} -IS\n")
    tree = tmp_path / "tree"
    plant(Kernel("plain", 8, 10), tree)
    before = snapshot(tree)
    for operation, sub in (("prepare", "begin"), ("start", "begin"), ("started", "begin")):
        done = run(hook, tree, operation, sub)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tree / "proc/irq/1/smp_affinity_list").read_text().strip() == "0-5"
    assert run(hook, tree, "release", "end").returncode == 0
    assert snapshot(tree) == before


def test_another_interpreter_falls_back_on_the_texts(tmp_path: Path) -> None:
    """The distribution may upgrade Python between two starts."""
    text = bundle.build(SYSTEMS)
    *rest, code = text.splitlines()
    hook = tmp_path / "hook"
    hook.write_text("\n".join([*rest, code.replace(code.split()[1], "00000000")]) + "\n")
    hook.chmod(0o755)
    plant(Kernel("plain", 8, 4), tmp_path / "tree")
    assert run(hook, tmp_path / "tree", "prepare", "begin").returncode == 0
    assert (tmp_path / "tree/run/kvmhooks/state.json").exists()


def test_nothing_of_ours_is_loaded_for_a_stranger(tmp_path: Path) -> None:
    """Not the comments' contents, and of the standard library only `os`."""
    hook = install(tmp_path)
    code = (
        "import sys; before = set(sys.modules); sys.argv = ['qemu', 'a', 'prepare', 'begin', '-'];"
        f"exec(compile(open({str(hook)!r}).read(), 'hook', 'exec'));"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [SYSTEMS, "-IS", "-c", code], input=b"<domain/>", capture_output=True, check=True
    )
    needed = b"__future__ _collections_abc _stat genericpath os os.path posixpath stat"
    assert set(done.stdout.split()) <= set(needed.split())


def test_a_script_that_was_there_keeps_working(tmp_path: Path) -> None:
    """Before libvirt 6.5 there is one file: the other one gets the same call and answers."""
    old = tmp_path / installation.SINGLE
    old.parent.mkdir(parents=True)
    old.write_text('#!/bin/sh\necho "$@"; cat; exit 7\n')
    old.chmod(0o755)
    hook = install(tmp_path, OLD)
    assert hook == old
    plant(Kernel("plain", 8, 4), tmp_path / "tree")
    done = run(hook, tmp_path / "tree", "prepare", "begin")
    assert done.returncode == 7
    assert done.stdout == b"a prepare begin -\n" + GUEST.xml
    assert (tmp_path / "tree/run/kvmhooks/state.json").exists()
    install(tmp_path, OLD)  # again: the other script is not taken for ours, nor lost
    installation.uninstall(str(tmp_path))
    assert old.read_text().startswith("#!/bin/sh")
    assert [path.name for path in old.parent.iterdir()] == ["qemu"]


def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    """Neither a file nor a link; the directories are libvirt's and systemd's."""
    install(tmp_path)
    installation.uninstall(str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    installation.uninstall(str(tmp_path))


def test_status_says_what_is_there_and_whether_it_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a command, with JSON, and each problem with its remedy."""
    root = ["--root", str(tmp_path)]
    assert main("hooks", ["status", *root]) == 1
    assert capsys.readouterr().out == "the hook is not installed\n"
    hook = install(tmp_path)
    assert main("hooks", ["status", "--json", *root]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": "/etc/libvirt/hooks/qemu.d/kvmhooks",
        "version": VERSION,
        "chained": False,
        "unit": True,
        "problems": [],
    }
    hook.chmod(0o666)
    hook.write_text(hook.read_text().replace(VERSION, "0.0.9", 1))
    assert main("hooks", ["status", *root]) == 1
    said = capsys.readouterr().out
    assert "version 0.0.9, expected" in said
    assert "others than root may write it" in said
    assert "not executable" in said


def test_owner_and_mode_whatever_the_umask(tmp_path: Path) -> None:
    """root's own, 755; the unit 644."""
    before = os.umask(0)
    try:
        hook = install(tmp_path)
    finally:
        os.umask(before)
    assert hook.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / installation.UNIT).stat().st_mode & 0o777 == 0o644


def test_an_interpreter_that_is_not_there_is_refused() -> None:
    """Before anything is written."""
    with pytest.raises(IsolationError, match="no such interpreter"):
        bundle.build("/usr/bin/python9")


def test_a_call_for_a_vm_of_ours_imports_nothing_large(tmp_path: Path) -> None:
    """Nothing that takes as long as the interpreter's own start; libvirt waits for it."""
    hook, root = tmp_path / "hook", tmp_path / "tree"
    hook.write_text(bundle.build(sys.executable))
    plant(Kernel("plain", 8, 10), root)
    loaded = set()
    for operation in ("prepare", "start", "started"):
        done = subprocess.run(
            [sys.executable, "-IS", "-X", "importtime", hook, "--root", root, "vm", operation,
             "begin", "-"],
            input=GUEST.xml, capture_output=True, check=True,
        )  # fmt: skip
        loaded |= {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert b"kvmhooks.isolate.engine" in loaded
    assert not loaded & {b"re", b"typing", b"json", b"contextlib", b"functools", b"collections"}
