"""The hook as one file, installed, chained, run by the system's interpreter, and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmhooks.cli.hooks import main
from kvmhooks.errors import IsolationError, UsageError
from kvmhooks.isolate.hook import bundle, installation
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


def daemon(root: Path, name: str = "libvirtd") -> None:
    """Have a daemon of libvirt's below ``root``, which is never run."""
    path = root / "usr/sbin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/false\n")
    path.chmod(0o755)


def run(hook: Path, root: Path, operation: str, sub: str) -> subprocess.CompletedProcess[bytes]:
    """Run the installed file on a tree, without anything of this environment."""
    return subprocess.run(
        [str(hook), "--root", str(root), "a", operation, sub, "-"],
        input=GUEST.xml, capture_output=True, check=False, cwd="/", env={}, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize("step", ["etc", "etc/libvirt/hooks/qemu.d", "etc/systemd"])
@pytest.mark.parametrize("to", ["{elsewhere}/kept", "../" * 9 + "{elsewhere}", "{elsewhere}/new"])
def test_no_step_below_a_root_leads_out_of_it(tmp_path: Path, step: str, to: str) -> None:
    """Through such a link nothing is written, nothing taken away, and nothing made."""
    root = tmp_path / "host"
    elsewhere = tmp_path / "elsewhere"
    install(root)
    elsewhere.mkdir()
    (root / step).rename(elsewhere / "kept")
    target = to.format(elsewhere=elsewhere).replace("..//", "../")
    (root / step).symlink_to(target)
    before = sorted(elsewhere.rglob("*"))
    expected = f"{root / step}: found a link to {target}, which leads out of {root}"
    with pytest.raises(IsolationError) as caught:
        install(root)
    assert str(caught.value) == expected
    with pytest.raises(IsolationError) as caught:
        installation.uninstall(str(root))
    assert str(caught.value) == expected
    assert sorted(elsewhere.rglob("*")) == before


def test_links_within_a_root_are_followed(tmp_path: Path) -> None:
    """Some distributions have them."""
    root = tmp_path / "host"
    (root / "usr/etc").mkdir(parents=True)
    (root / "etc").symlink_to("usr/etc")
    assert (root / "usr" / install(root).relative_to(root)).is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_no_step_below_a_root_is_another_users(tmp_path: Path) -> None:
    """He could put a link there meanwhile; the root itself is one of them."""
    for name in ("", "etc", "etc/libvirt", "etc/systemd/system"):
        root = tmp_path / f"host-{name.replace('/', '-')}"
        (root / name).mkdir(parents=True)
        os.chown(root / name, 1234, -1)
        with pytest.raises(IsolationError, match="found user 1234's, mode 755, expected what only"):
            install(root)
        os.chown(root / name, 0, -1)
        (root / name).chmod(0o777)
        with pytest.raises(IsolationError, match="found user 0's, mode 777, expected what only"):
            install(root)
        (root / name).chmod(0o755)
        assert install(root).is_file()
    (tmp_path / "linked/usr/etc").mkdir(parents=True)
    (tmp_path / "linked/etc").symlink_to("usr/etc")
    os.chown(tmp_path / "linked/etc", 1234, -1, follow_symlinks=False)
    with pytest.raises(IsolationError, match="linked/etc: found user 1234's"):
        install(tmp_path / "linked")


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


@pytest.mark.parametrize("there", ["", "etc/libvirt/hooks", "etc/libvirt/hooks/qemu.d"])
def test_uninstall_leaves_nothing(tmp_path: Path, there: str) -> None:
    """Neither a file nor a link, nor a directory that was not there; one that was there stays."""
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    install(tmp_path)
    install(tmp_path)  # an upgrade: it made none of the directories, and forgets none
    installation.uninstall(str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    installation.uninstall(str(tmp_path))


def test_uninstall_says_what_there_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hook that is gone now, or none."""
    words = ["uninstall", "--root", str(tmp_path)]
    daemon(tmp_path)
    none = "the hook was not installed: found none to remove\n"
    assert (main("hooks", words), capsys.readouterr().out) == (0, none)
    hook = install(tmp_path)
    removed = f"/{hook.relative_to(tmp_path)}: the hook is removed\n"
    assert (main("hooks", words), capsys.readouterr().out) == (0, removed)
    assert (main("hooks", words), capsys.readouterr().out) == (0, none)


def test_uninstall_keeps_what_others_have_put_beside(tmp_path: Path) -> None:
    """Another hook, in a directory that we made, and a unit that we did not make."""
    theirs = install(tmp_path).with_name("other")
    theirs.touch()
    unit = tmp_path / installation.UNIT
    unit.write_text("[Unit]\n")
    installation.uninstall(str(tmp_path))
    assert {path for path in tmp_path.rglob("*") if not path.is_dir()} == {theirs, unit}


def test_a_packages_unit_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is enabled, not hidden by one of ours; one that an earlier installation made goes."""
    daemon(tmp_path)
    install(tmp_path)
    unit = tmp_path / "usr/lib/systemd/system/kvmhooks-reconcile.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(installation.reconcile_unit("/usr/bin/kvmhooks reconcile"))
    root = ["--root", str(tmp_path)]
    assert main("hooks", ["status", *root]) == 0
    install(tmp_path)
    assert not (tmp_path / installation.UNIT).exists()
    links = [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert sorted(str(path.parent.name) for path in links) == [
        "irqbalance.service.wants", "multi-user.target.wants"
    ]  # fmt: skip
    assert {str(path.readlink()) for path in links} == {f"/{unit.relative_to(tmp_path)}"}
    assert main("hooks", ["status", "--json", *root]) == 0
    links[0].unlink()
    assert main("hooks", ["status", *root]) == 1
    assert f"{unit}: nothing starts it: run `kvmhooks hooks install`" in capsys.readouterr().out
    installation.uninstall(str(tmp_path))
    assert unit.exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("verb", ["install", "uninstall", "status"])
@pytest.mark.parametrize(
    "name",
    ["etc", "etc/libvirt/hooks", installation.DROP_IN, installation.SINGLE, "etc/systemd/system"],
)
def test_no_link_of_a_tree_has_a_hook_put_elsewhere(tmp_path: Path, verb: str, name: str) -> None:
    """Nothing beside the tree is read, written or removed."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    daemon(root)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(outside)
    words = ["--force"] if verb == "uninstall" else []
    with pytest.raises(IsolationError, match=f"which leads out of {root}"):
        main("hooks", [verb, "--root", str(root), *words])
    assert list(tmp_path.rglob("*kvmhooks*")) in ([], [root / installation.DROP_IN])
    assert not list(outside.iterdir())


def test_the_directories_that_a_hook_names_are_its_trees(tmp_path: Path) -> None:
    """The hook of a tree may lie about what was made with it."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    hook = install(root)
    first, second, third, rest = hook.read_text().split("\n", 3)
    hook.write_text(f"{first}\n{second}\n{third} ../outside {outside}\n{rest}")
    installation.uninstall(str(root))
    assert outside.is_dir()
    assert not hook.exists()


def test_without_a_daemon_nobody_calls_the_hook(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`install` is refused before anything is written; `status` says it, installed or not."""
    root = ["--root", str(tmp_path)]
    with pytest.raises(IsolationError, match=installation.NOBODY):
        main("hooks", ["install", *root])
    assert list(tmp_path.iterdir()) == []
    assert main("hooks", ["status", *root]) == 1
    assert capsys.readouterr().out == f"the hook is not installed; {installation.NOBODY}\n"
    install(tmp_path)
    assert main("hooks", ["status", *root]) == 1
    assert installation.NOBODY in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", installation.DAEMONS)
def test_either_daemon_calls_the_hook(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """libvirt's one daemon or the modular one; of another root's no process is told."""
    daemon(tmp_path, name)
    root = ["--root", str(tmp_path)]
    assert main("hooks", ["install", "--python", SYSTEMS, *root]) == 0
    assert main("hooks", ["status", *root]) == 0
    told = f"/{installation.DROP_IN}: kvmhooks {VERSION}\n"
    assert capsys.readouterr().out == told * 2


def test_the_hook_goes_only_when_nothing_is_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a VM owns CPUs it is refused with what is held, and everything stays as it is; forced,
    it gives back first. Of a VM that is gone it gives back by itself."""
    plant(Kernel("plain", 8, 10), tmp_path)
    before = snapshot(tmp_path)
    hook = install(tmp_path)
    installed = snapshot(tmp_path)
    for how in ((), ("--force",)):
        for operation in ("prepare", "start", "started"):
            assert run(hook, tmp_path, operation, "begin").returncode == 0
        held = snapshot(tmp_path)
        if how:
            assert main("hooks", ["uninstall", "--root", str(tmp_path), *how]) == 0
            continue
        with pytest.raises(IsolationError) as refused:
            main("hooks", ["uninstall", "--root", str(tmp_path)])
        first, remedy = str(refused.value).splitlines()
        assert first.startswith("a: found it running (process ")
        assert first.endswith(" with CPUs 6-7, expected none")
        assert "`kvmhooks hooks uninstall --force`" in remedy
        assert snapshot(tmp_path) == held
        assert run(hook, tmp_path, "release", "end").returncode == 0
        assert snapshot(tmp_path) == installed
    assert snapshot(tmp_path) == before
    capsys.readouterr()


def test_an_interpreter_that_is_missing_moves_no_script(tmp_path: Path) -> None:
    """A refused installation leaves the script that is there where it is."""
    old = tmp_path / installation.SINGLE
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\n")
    with pytest.raises(IsolationError, match="no such interpreter"):
        installation.install(str(tmp_path), "/usr/bin/python9", OLD)
    assert [path.name for path in old.parent.iterdir()] == ["qemu"]


@pytest.mark.parametrize("line", ["", f"# Of {'0' * 64}\n"], ids=["before it was told", "another"])
def test_a_hook_of_another_build_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    """After an upgrade that changed no version number, as from a checkout, `status` says what to
    do; once that is done there is nothing to say."""
    daemon(tmp_path)
    hook = install(tmp_path)
    hook.write_text(hook.read_text().replace(f"# Of {bundle.digest()}\n", line, 1))
    found = f"{installation.status(str(tmp_path)).path}: kvmhooks {VERSION}"
    assert main("hooks", ["status", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        found, f"another build of {VERSION} than this one: run `kvmhooks hooks install`"
    ]  # fmt: skip
    install(tmp_path)
    assert installation.status(str(tmp_path)).problems == ()


def test_status_says_what_is_there_and_whether_it_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a command, with JSON, and each problem has its remedy."""
    root = ["--root", str(tmp_path)]
    daemon(tmp_path)
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
    output = capsys.readouterr().out
    assert "version 0.0.9, expected" in output
    assert "others than root may write it" in output
    assert "not executable" in output


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
    assert b"kvmhooks.isolate.engine.converge" in loaded
    assert not loaded & {b"re", b"typing", b"json", b"contextlib", b"functools", b"collections"}
    beside = {name for name in loaded if name.endswith((b".drift", b".comparing", b".comparison"))}
    assert not beside


@pytest.mark.parametrize("name", ["../victim/empty", "{absolute}", "etc/empty", "etc/../etc/empty"])
def test_only_directories_that_we_make_are_taken_away(tmp_path: Path, name: str) -> None:
    """Nothing else goes, outside of the root or below it, whatever the hook's third line says."""
    outside, below = tmp_path / "victim/empty", tmp_path / "root/etc/empty"
    for directory in (outside, below):
        directory.mkdir(parents=True)
    hook = install(tmp_path / "root")
    first, second, third, rest = hook.read_text().split("\n", 3)
    third += f" {name.format(absolute=outside)}"
    hook.write_text(f"{first}\n{second}\n{third}\n{rest}")
    installation.uninstall(str(tmp_path / "root"))
    assert outside.is_dir()
    assert list((tmp_path / "root").rglob("*")) == [below.parent, below]


def test_a_directory_in_the_place_of_the_hook_is_named(tmp_path: Path) -> None:
    """It stays, and nothing is left beside it."""
    place = tmp_path / installation.DROP_IN
    place.mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as raised:
        install(tmp_path)
    assert raised.value.filename == str(place)
    assert raised.value.filename2 is None
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("action", ["install", "status"])
def test_force_is_a_word_of_uninstall(tmp_path: Path, action: str) -> None:
    """Beside another action it would do nothing, so it is refused, and nothing is made."""
    with pytest.raises(UsageError, match=f"--force: found it beside {action}, expected uninstall"):
        main("hooks", [action, "--force", "--root", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
