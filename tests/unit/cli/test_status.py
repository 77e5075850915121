"""``kvmhooks status``: what it says of the host beside the record, and how it ends."""

from __future__ import annotations

import fcntl
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmhooks.cli import status
from kvmhooks.cli.main import main
from kvmhooks.cli.status_text import _SENTENCES, told
from kvmhooks.isolate.hook import entry
from kvmhooks.isolate.record import comparison
from kvmhooks.isolate.record.comparison import STATES, Comparison
from kvmhooks.isolate.record.store import RECORD, Store
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm, World

if TYPE_CHECKING:
    from typing import Any

ROOT = Path(__file__).parents[3]
A = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
IRQ = "proc/irq/1/smp_affinity_list"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree of a host with 8 CPUs on which a VM has two."""
    plant(Kernel("plain", 8, 3), tmp_path)
    for path in tmp_path.glob("proc/irq/*/effective_affinity_list"):  # as they move in the end
        path.write_text("0\n")
    for operation in ("prepare", "start", "started"):
        arguments = [A.name, operation, "begin", "-"]
        assert entry.main(arguments, io.BytesIO(A.xml), io.StringIO(), str(tmp_path)) == 0
    return tmp_path


def knob(root: Path, capsys: pytest.CaptureFixture[str], key: str = "irq/1") -> Any:
    """Return what the document says of a setting."""
    capsys.readouterr()
    main(["status", "--root", str(root), "--json"])
    knobs = json.loads(capsys.readouterr().out)["knobs"]
    return next((knob for knob in knobs if knob["knob"] == key), None)


def test_drift_is_told_with_all_that_one_needs_and_has_an_exit_code(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file, what it was, should be and is, for whom, and what repairs it; then that does."""
    assert main(["status", "--root", str(root)]) == 0
    assert "drifted" not in capsys.readouterr().out
    (root / IRQ).write_text("4-7\n")
    assert main(["status", "--root", str(root)]) == 5
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "drifted" in line]
    assert line == (
        f"  drifted: /{IRQ}: was 0-7, should be 0-5 (a), is 4-7: "
        "run `kvmhooks reconcile`, which makes it 4-5"
    )
    assert knob(root, capsys) == {
        "knob": "irq/1", "original": "0-7", "held": "0-5", "settled": True,
        "place": f"/{IRQ}", "was": "0-7", "should": "0-5", "now": "4-7", "state": "drifted",
        "why": "", "remedy": "run `kvmhooks reconcile`, which makes it 4-5", "by": ["a"],
    }  # fmt: skip
    assert main(["reconcile", "--root", str(root)]) == 0
    assert main(["status", "--root", str(root)]) == 0
    assert (root / IRQ).read_text().strip() == "4-5"
    assert knob(root, capsys)["state"] == "held"


def test_a_document_ends_with_the_same_code(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read either."""
    (root / IRQ).write_text("0-7\n")
    assert main(["status", "--root", str(root), "--json"]) == 5
    assert main(["undo", "--all", "--root", str(root)]) == 0
    capsys.readouterr()
    assert main(["status", "--root", str(root)]) == 0
    assert capsys.readouterr().out == "nothing is held\n"


def test_the_status_of_one_vm_is_its_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name or UUID: what it asks for, also beside others, and its drift alone."""
    b = Vm("b", CpuSet.parse("4-5"), CpuSet.parse("0-1"))
    (root / "proc/irq/2/smp_affinity_list").write_text("0-1,4\n")
    for operation in ("prepare", "start", "started"):
        words = [b.name, operation, "begin", "-"]
        assert entry.main(words, io.BytesIO(b.xml), io.StringIO(), str(root)) == 0
    (root / "proc/irq/2/smp_affinity_list").write_text("4\n")
    documents = {}
    for name, code in (("a", 0), (b.uuid, 5)):
        assert main(["status", name, "--root", str(root), "--json"]) == code
        document = json.loads(capsys.readouterr().out)
        documents[document["claims"][0]["name"]] = document
        assert len(document["claims"]) == 1
    knobs = {
        name: {knob["knob"]: knob["by"] for knob in document["knobs"]}
        for name, document in documents.items()
    }
    assert all("a" in by for by in knobs["a"].values())
    assert all("b" in by for by in knobs["b"].values())
    assert knobs["b"].keys() - knobs["a"].keys() == {"irq/2"}
    assert knobs["a"]["irq/1"] == ["a", "b"]
    assert main(["status", "c", "--root", str(root)]) == 1
    assert capsys.readouterr().err == "found 0 claims of 'c', expected one of: a, b\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is only root's to be")
def test_an_ordinary_user_is_told_whose_the_record_is(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence with what to do; of the record he sees nothing."""
    above = [path for path in root.parents if str(path).startswith("/tmp/")]
    modes = [path.stat().st_mode for path in above]
    for path in above:
        path.chmod(0o755)
    root.chmod(0o755)
    os.seteuid(65_534)
    try:
        code = main(["status", "--root", str(root)])
    finally:
        os.seteuid(0)
        for path, mode in zip(above, modes, strict=True):
            path.chmod(mode)
    told_him = capsys.readouterr()
    expected = "cannot be read: what VMs hold of the host is root's to see; run as root"
    assert (code, told_him.out, told_him.err) == (1, "", f"/run/kvmhooks: {expected}\n")


def test_what_cannot_be_read_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no drift, and not left out."""
    (root / IRQ).write_text("x\n")
    found = knob(root, capsys)
    assert (found["state"], found["now"], found["by"]) == ("unknown", None, ["a"])
    assert found["why"].startswith("found 'x', expected ")
    assert main(["status", "--root", str(root)]) == 0
    assert f"  unknown: /{IRQ}: was 0-7, should be 0-5 (a): found 'x'" in capsys.readouterr().out


def a_row(state: str, number: int) -> Comparison:
    """Return a setting in a state."""
    row = Comparison(f"irq/{number}", f"/irq/{number}", by=["a"])
    row.was, row.should, row.now = "0-7", "", "4"
    return row.judged(state, "", comparison.RECONCILE)


@pytest.mark.parametrize("state", STATES)
def test_many_things_in_a_state_are_short(state: str) -> None:
    """Things that need a look have a sentence each, up to a number; all else is one line."""
    rows = [a_row(state, number) for number in range(_SENTENCES + 7)]
    lists = ("claims", "units", "groups", "devices", "virtual_functions", "mediated_devices")
    document: dict[str, Any] = {key: [] for key in (*lists, "function_settings")} | {
        "huge_pages_owed": {}
    }
    lines = told(document | {"knobs": [{}]}, rows).splitlines()
    if state in (comparison.DRIFTED, comparison.UNKNOWN, comparison.OWED):
        first = "/irq/0: was 0-7, should be none (a), is 4: run `kvmhooks reconcile`"
        assert lines[0] == f"  {state}: {first}"
        assert lines[_SENTENCES:] == [f"  {state}: 7 more, see `kvmhooks status --json`"]
    else:
        keys = "27 irq" if state == comparison.HELD else "irq/0, irq/1, irq/2, irq/3, irq/4 and 22"
        more = "" if state == comparison.HELD else " more"
        assert lines == [f"  27 {state} ({keys}{more}): {STATES[state]}"]


class Busy(Kernel):
    """A host on which a call holds the record's lock, and ends while one waits, or does not."""

    ends = True

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        if self.ends:
            self.locked.clear()


def test_a_call_that_is_under_way_is_waited_for() -> None:
    """Then its end is told; what had no end in time is unsettled."""
    kernel = Busy("systemd", 8, 3)
    world, vm = World(kernel), Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
    world.start(vm)
    follower = Process.find(kernel, kernel.libvirtd)
    assert follower is not None
    world.registry.follow(vm.key, follower)
    kernel.put(IRQ, "6")
    kernel.locked = {RECORD}
    _, found = status.compared(world.registry)
    assert {row.key: row.state for row in found}["irq/1"] == comparison.DRIFTED
    kernel.ends = False
    kernel.locked = {RECORD}
    _, found = status.compared(world.registry)
    assert {row.key: row.state for row in found}["irq/1"] == comparison.UNSETTLED


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no tmpfs here")
def test_a_lock_that_is_held_is_seen_without_being_held() -> None:
    """By the kernel's list of locks; a lock that nobody holds, or ever made, is free."""
    root = Path("/dev/shm") / f"kvmhooks-test-{os.getpid()}"
    (root / "run/kvmhooks").mkdir(parents=True)
    (root / "run/kvmhooks").chmod(0o700)
    lock = root / "run/kvmhooks" / RECORD
    store, system = Store(str(root)), System("/")
    try:
        assert not store.is_busy(system)
        lock.touch()
        assert not store.is_busy(system)
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert store.is_busy(system)
            assert not store.is_busy(system, "pages.lock")
        assert not store.is_busy(system)
        assert not store.is_busy(System(str(root)))
    finally:
        store.close()
        lock.unlink()
        for path in (root / "run/kvmhooks", root / "run", root):
            path.rmdir()


def test_the_page_has_each_state() -> None:
    """With its meaning, in the table of docs/isolation.md."""
    page = (ROOT / "docs/isolation.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 3]
    told_states = {
        words[0].strip(" `"): words[1].strip() for words in (row.split("|")[1:3] for row in rows)
    }
    assert {state: told_states.get(state) for state in STATES} == dict(STATES)
