"""The hook as libvirt calls it: what it ignores, refuses, prints, and never does."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvmhooks import isolate
from kvmhooks.errors import IsolationError
from kvmhooks.isolate.hook import entry
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant, snapshot
from tests.isolate_model.world import Vm, World, effective_state, intruders

OPERATIONS = (
    ("prepare", "begin"),
    ("start", "begin"),
    ("started", "begin"),
    ("stopped", "end"),
    ("release", "end"),
    ("reconnect", "begin"),
    ("migrate", "begin"),
    ("restore", "begin"),
)
A = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
B = Vm("b", CpuSet.parse("5-6"), CpuSet.parse("0-1"))
STRANGER = Vm("s", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy="")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host of 8 CPUs on plain files."""
    plant(Kernel("plain", 8, 10), tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path


def run(root: Path, vm: Vm, operation: str, sub: str = "begin", xml: bytes | None = None) -> int:
    stdout = io.StringIO()
    code = entry.main(
        [vm.name, operation, sub, "-"],
        io.BytesIO(vm.xml if xml is None else xml),
        stdout,
        str(root),
    )
    assert stdout.getvalue() == ""
    return code


def state(root: Path) -> Any:
    return json.loads((root / "run/kvmhooks/state.json").read_text())


def test_a_guest_without_our_metadata_touches_nothing(root: Path) -> None:
    """Not even our directory is made."""
    before = snapshot(root)
    for operation, sub in OPERATIONS:
        assert run(root, STRANGER, operation, sub) == 0
    assert snapshot(root) == before
    assert not (root / "run/kvmhooks").exists()


def test_what_is_imported_for_a_stranger() -> None:
    """One interpreter start and nothing else: no module of ours but the hook itself."""
    code = (
        "import sys, io; before = set(sys.modules); from kvmhooks.isolate.hook import main;"
        "main(['s', 'prepare', 'begin', '-'], io.BytesIO(b'<domain/>'), None, '/nonexistent');"
        "print(*sorted(m for m in set(sys.modules) - before if m.startswith('kvmhooks')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [
        b"kvmhooks",
        b"kvmhooks.isolate",
        b"kvmhooks.isolate.hook",
        b"kvmhooks.isolate.hook.entry",
        b"kvmhooks.isolate.hook.fastpath",
    ]


def test_the_kill_switch_stops_everything(root: Path) -> None:
    """`/etc/kvmhooks/disabled` exists: exit 0, nothing read, nothing written."""
    (root / "etc/kvmhooks").mkdir(parents=True)
    (root / "etc/kvmhooks/disabled").touch()
    before = snapshot(root)
    for operation, sub in OPERATIONS:
        assert run(root, A, operation, sub) == 0
    assert snapshot(root) == before


def test_an_ordinary_user_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu:///session runs the same hooks: exit 0 before anything is touched."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert entry.main(["a", "prepare", "begin", "-"], io.BytesIO(A.xml), io.StringIO()) == 0


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"], ["a", "attach", "begin", "-"]])
def test_an_operation_that_is_not_ours_is_ignored(root: Path, arguments: list[str]) -> None:
    """libvirt may add operations."""
    assert entry.main(arguments, io.BytesIO(A.xml), io.StringIO(), str(root)) == 0


OTHER_WORDS = [
    (["--reconcile", "--rot", "T"], "'--reconcile' '--rot' 'T'"),
    (["--help"], "'--help'"),
    (["--follow"], "'--follow'"),
    (["--root"], "'--root'"),
    (["--root", "T", "--settle", "x"], "'--settle' 'x'"),
    (["--\x1b[2J"], "'--\\x1b[2J'"),
]


@pytest.mark.parametrize(("words", "found"), OTHER_WORDS, ids=range(len(OTHER_WORDS)))
def test_words_that_are_none_of_its_own_are_refused(
    words: list[str], found: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, and nobody waits for a domain on the standard input."""
    assert entry.command(words) == 2
    expected = "--reconcile, --follow KEY or --settle, with --root DIR where it is not /"
    assert capfd.readouterr() == ("", f"kvmhooks: found {found}, expected {expected}\n")


@pytest.mark.parametrize("is_last", [False, True])
def test_the_root_may_stand_on_either_side(
    root: Path,
    is_last: bool,  # noqa: FBT001 -- a parameter
) -> None:
    """`--reconcile --root T` gives back as `--root T --reconcile` does."""
    assert run(root, A, "prepare") == 0
    (held,) = state(root)["held"].values()
    shutil.rmtree(root / "proc" / str(held["holder"][0]))
    words = [["--reconcile"], ["--root", str(root)]]
    assert entry.command([*words[not is_last], *words[is_last]]) == 0
    assert not (root / "run/kvmhooks/state.json").exists()


@pytest.mark.parametrize("name", ["--reconcile", "--follow", "--root", "--settle", "--x"])
def test_a_stranger_may_be_called_like_an_option(root: Path, name: str) -> None:
    """libvirt allows it: such a VM starts as any other."""
    before = snapshot(root)
    for operation, sub in OPERATIONS:
        assert entry.is_call([name, operation, sub, "-"])
        assert entry.command(["--root", str(root), name, operation, sub, "-"], STRANGER.xml) == 0
    assert snapshot(root) == before


def test_a_refusal_is_one_line_with_the_remedy(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 and one line on stderr, which libvirt shows."""
    assert run(root, A, "prepare") == 0
    assert run(root, B, "prepare") == 1
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "CPUs 6 are a's alone" in output
    assert "kvmhooks tune b" in output


@pytest.mark.parametrize(
    ("operation", "sub"), [("reconnect", "begin"), ("release", "end"), ("stopped", "end")]
)
def test_what_must_not_fail_does_not(root: Path, operation: str, sub: str) -> None:
    """A failure at `reconnect` would kill the guest: also with a broken record, or broken XML."""
    assert run(root, A, operation, sub, b"<domain>urn:kvmhooks:1") == 0
    (root / "run/kvmhooks").mkdir(mode=0o700, exist_ok=True)
    (root / "run/kvmhooks/state.json").write_text("{}")
    assert run(root, A, operation, sub) == 0


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", '{"format": 2}', '{"format": 1}'])
def test_a_record_that_is_not_ours_refuses_the_start(
    root: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record cannot be read, so nothing new is begun; others start all the same."""
    (root / "run/kvmhooks").mkdir(mode=0o700)
    (root / "run/kvmhooks/state.json").write_text(text)
    assert run(root, A, "prepare") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert run(root, STRANGER, "prepare") == 0


def test_after_a_reboot_there_is_nothing_to_undo(root: Path) -> None:
    """Another boot's record is dropped, and not one value of it is written."""
    assert run(root, A, "prepare") == run(root, A, "start") == 0
    (root / "proc/sys/kernel/random/boot_id").write_text("another boot\n")
    (root / "proc/irq/1/smp_affinity_list").write_text("0-3\n")
    assert run(root, A, "release", "end") == 0
    assert (root / "proc/irq/1/smp_affinity_list").read_text() == "0-3\n"
    assert not (root / "run/kvmhooks/state.json").exists()


def test_the_record_is_roots_own(root: Path) -> None:
    """Mode 700 and 600, whatever the umask."""
    old = os.umask(0)
    try:
        run(root, A, "prepare")
    finally:
        os.umask(old)
    assert (root / "run/kvmhooks").stat().st_mode & 0o777 == 0o700
    assert (root / "run/kvmhooks/state.json").stat().st_mode & 0o777 == 0o600
    assert (root / "run/kvmhooks/lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["state.json", "state.json.new", "lock"])
def test_a_link_in_the_record_is_not_followed(root: Path, tmp_path: Path, name: str) -> None:
    """Someone who could make one must not make root write elsewhere."""
    target = tmp_path / "target"
    target.write_text("{}")
    (root / "run/kvmhooks").mkdir(mode=0o700)
    (root / "run/kvmhooks" / name).symlink_to(target)
    assert run(root, A, "prepare") == 1
    assert target.read_text() == "{}"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_directory_that_others_can_enter_is_refused(root: Path, mode: int) -> None:
    """It must be root's own from the start."""
    (root / "run/kvmhooks").mkdir()
    (root / "run/kvmhooks").chmod(mode)
    assert run(root, A, "prepare") == 1


def test_a_directory_that_is_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    """Neither run nor kvmhooks may be one."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (root / "run/kvmhooks").symlink_to(tmp_path / "elsewhere")
    assert run(root, A, "prepare") == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../../b", "x" * 300, "a\nb"])
def test_a_name_does_not_leave_its_place(root: Path, name: str) -> None:
    """The guest's name is an argument of the hook and stands in its XML."""
    before = snapshot(root)
    assert run(root, A, "prepare", xml=A.xml.replace(b"<name>a<", f"<name>{name}<".encode())) == 1
    assert snapshot(root) == before


def test_no_variable_of_the_environment_is_read() -> None:
    """None changes what root does; Python's own are ignored with -I as installed."""
    for path in Path(isolate.__file__).parent.rglob("*.py"):
        assert re.search(r"environ\b|getenv|expanduser|expandvars", path.read_text()) is None, path


def test_fifty_megabytes_are_refused_quickly(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The XML is bounded before it is parsed."""
    xml = A.xml.replace(b"</domain>", b" " * (50 << 20) + b"</domain>")
    begun = time.process_time()
    assert run(root, A, "prepare", xml=xml) == 1
    assert time.process_time() - begun < 1
    assert "expected at most" in capsys.readouterr().err


def test_a_start_without_prepare_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the check of `prepare` nothing is known about the CPUs."""
    assert run(root, A, "start") == 1
    assert "no claim was taken at `prepare`" in capsys.readouterr().err


def test_strict_gives_everything_back_when_a_part_is_refused() -> None:
    """A mask that the kernel does not take stops a strict VM, and the host is as it was."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    before = effective_state(kernel)

    def refuse(what: str) -> None:
        if what.endswith("workqueue/cpumask"):
            raise OSError(errno.EINVAL, "refused")

    kernel.step = refuse
    world.start(A)
    assert list(intruders(kernel, world)) == ["sys/devices/virtual/workqueue/cpumask on 6-7 of a"]
    world.stop(A)
    strict = '<kvmhooks:isolation exclusive="yes" strict="yes"/>'
    with pytest.raises(IsolationError, match="strict, and 1 could not be met: workqueue: "):
        world.start(Vm("a", A.cpus, A.emulator, strict))
    assert effective_state(kernel) == before
    assert kernel.record is None
