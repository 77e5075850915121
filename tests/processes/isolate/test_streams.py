"""The hook as libvirt runs it, with standard files that are closed, full, slow, or no XML.

Real interpreters: with a closed one Python itself has none. All are under way beside each other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmhooks.isolate.hook import bundle
from kvmhooks.isolate.hook.installation import install
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm

HOOK = Path(__file__).resolve().parents[3] / "hooks/qemu"
OURS = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
STRANGER = Vm("s", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy="")
XML = {
    "ours": OURS.xml,
    "in no encoding": b'<?xml version="1.0" encoding="rot13"?>' + OURS.xml,
    "not whole": OURS.xml[:-9],
}
CALLS = (
    ("release", "end"),
    ("reconnect", "begin"),
    ("migrate", "begin"),
    ("restore", "begin"),
    ("stopped", "end"),
)
ENDS = {
    "stdin is closed": 'exec "$@" <&-',
    "stdout is closed": 'exec "$@" >&-',
    "stdout is full": 'exec "$@" >/dev/full',
    "stderr is closed": 'exec "$@" 2>&-',
    "stderr is full": 'exec "$@" 2>/dev/full',
    "all are closed": 'exec "$@" <&- >&- 2>&-',
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host of 8 CPUs on plain files, on which a record cannot be used."""
    plant(Kernel("plain", 8, 4), tmp_path)
    (tmp_path / "run/kvmhooks").mkdir(parents=True, mode=0o700)
    state = tmp_path / "run/kvmhooks/state.json"
    state.touch(mode=0o600)
    state.write_text("{}")
    return tmp_path


def begin(script: str, words: list[str], xml: bytes, path: Path) -> subprocess.Popen[bytes]:
    """Run a hook in a shell that closes some of its standard files."""
    path.write_bytes(xml)
    with path.open("rb") as file:
        return subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", *words],
            stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


def ending(running: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Return its exit code, its output and its errors."""
    out, err = running.communicate(timeout=60)
    return running.returncode, out, err


def in_turn(cases: dict[str, tuple[str, list[str], bytes]], folder: Path) -> dict[str, object]:
    """Run all, some at a time: how each ended that did not end well."""
    found: dict[str, object] = {}
    names = list(cases)
    for at in range(0, len(names), 8):
        part = names[at : at + 8]
        running = {
            name: begin(*cases[name], folder / str(number)) for number, name in enumerate(part)
        }
        ended = {name: ending(process) for name, process in running.items()}
        found |= {name: end for name, end in ended.items() if end != (0, b"", b"")}
    print(f"{len(cases)} calls")
    return found


def test_what_must_not_fail_does_not_whatever_its_files_are(root: Path, tmp_path: Path) -> None:
    """Exit code 0 and nothing said, for a VM of ours too, beside a record that is damaged."""
    hook = [sys.executable, "-IS", str(HOOK), "--root", str(root)]
    cases = {
        f"{end}: {operation}, the XML is {kind}": (script, [*hook, "a", operation, sub, "-"], xml)
        for end, script in ENDS.items()
        for operation, sub in CALLS
        for kind, xml in XML.items()
        if kind == "ours" or end == "stdout is full"
    }
    assert in_turn(cases, tmp_path) == {}


def test_strangers_start_whatever_their_files_are(root: Path, tmp_path: Path) -> None:
    """`prepare`, `start` and `started`, too; and of ours none that is refused says it in vain."""
    hook = [sys.executable, "-IS", str(HOOK), "--root", str(root)]
    cases = {
        f"{end}: {operation}": (script, [*hook, "s", operation, "begin", "-"], STRANGER.xml)
        for end, script in ENDS.items()
        for operation in ("prepare", "start", "started")
    }
    assert in_turn(cases, tmp_path) == {}
    words = [*hook, "a", "prepare", "begin", "-"]
    codes = [
        ending(begin(ENDS[end], words, OURS.xml, tmp_path / "xml"))[0]
        for end in ("stdout is closed", "stderr is closed", "stderr is full")
    ]
    assert 0 not in codes


def test_the_installed_file_takes_whatever_files_it_gets(tmp_path: Path) -> None:
    """Its own first lines read the XML; for a stranger nothing else of it is run."""
    hook = tmp_path / "hook"
    hook.write_text(bundle.build())
    hook.chmod(0o755)
    words = [str(hook), "s", "prepare", "begin", "-"]
    cases = {end: (script, words, STRANGER.xml) for end, script in ENDS.items()}
    assert in_turn(cases, tmp_path) == {}


def test_an_installed_file_that_is_damaged_keeps_no_stranger_from_starting(tmp_path: Path) -> None:
    """Half of it is gone: where it must isolate it fails, else it does not matter."""
    hook = tmp_path / "hook"
    whole = bundle.build(chained="/bin/true").splitlines(keepends=True)
    hook.write_text("".join(whole[:-3] + [line[:99] + "\n" for line in whole[-3:]]))
    hook.chmod(0o755)
    endings = {}
    for name, xml in (("a stranger's", STRANGER.xml), ("ours", OURS.xml)):
        for operation in ("prepare", "release"):
            words = [str(hook), "s", operation, "begin", "-"]
            code, out, err = ending(begin('exec "$@"', words, xml, tmp_path / "xml"))
            assert (out, err.count(b"\n")) == (b"", 1)
            endings[f"{name}: {operation}"] = code
    assert endings == {
        "a stranger's: prepare": 0,
        "a stranger's: release": 0,
        "ours: prepare": 1,
        "ours: release": 0,
    }


def test_xml_that_does_not_come_is_not_waited_for(root: Path) -> None:
    """Five seconds: a stranger starts, one of ours whose metadata came is refused."""
    hook = [sys.executable, "-IS", str(HOOK), "--root", str(root)]
    begun = time.monotonic()
    running = []
    for name, xml in (("s", b"<domain>"), ("s", b""), ("a", OURS.xml[:-9])):
        process = subprocess.Popen(
            [*hook, name, "prepare", "begin", "-"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(xml)
        process.stdin.flush()
        running.append(process)
    codes = [process.wait(30) for process in running]
    took = time.monotonic() - begun
    messages = [process.stderr.read() for process in running if process.stderr is not None]
    for process in running:
        process.communicate()
    assert codes == [0, 0, 1]
    assert messages[:2] == [b"", b""]
    assert messages[2].startswith(b"kvmhooks: domain XML of ")
    assert 4 < took < 20


@pytest.mark.parametrize(
    ("text", "mode"), [("no program\n", 0o755), ("#!/nonexistent\n", 0o755), ("", 0o755)]
)
def test_a_script_that_was_there_before_and_cannot_be_run(
    tmp_path: Path, text: str, mode: int
) -> None:
    """It keeps no VM from starting, and the answer is that of our hook."""
    before = tmp_path / "etc/libvirt/hooks/qemu"
    before.parent.mkdir(parents=True)
    before.write_text(text)
    before.chmod(mode)
    found = install(str(tmp_path), libvirt=(6, 0, 0), planner=[])
    hook = f"{tmp_path}{found.path}"
    assert found.chained
    words = [hook, "s", "prepare", "begin", "-"]
    assert ending(begin('exec "$@"', words, STRANGER.xml, tmp_path / "xml")) == (0, b"", b"")


def test_a_fifo_in_the_place_of_the_hook_is_kept(tmp_path: Path) -> None:
    """Nothing waits for what may come out of it."""
    before = tmp_path / "etc/libvirt/hooks/qemu"
    before.parent.mkdir(parents=True)
    os.mkfifo(before)
    assert install(str(tmp_path), libvirt=(6, 0, 0), planner=[]).path == "/etc/libvirt/hooks/qemu"
    assert before.with_name("qemu.before-kvmhooks").is_fifo()
