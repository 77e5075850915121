"""The verbs for people, on a tree of files."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmhooks.cli.main import VERBS, main
from kvmhooks.isolate.hook import entry, follower_unit
from kvmhooks.isolate.record import json as notation
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import add_process, plant, snapshot
from tests.isolate_model.world import Vm

if TYPE_CHECKING:
    from pathlib import Path

A = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
B = Vm("b", CpuSet.parse("4-5"), CpuSet.parse("0-1"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """8 CPUs, and interrupt 1 bound to CPUs 4-5."""
    kernel = Kernel("plain", 8, 3)
    kernel.put("proc/irq/1/smp_affinity_list", "4-5")
    plant(kernel, tmp_path)
    return tmp_path


def start(root: Path, *vms: Vm) -> None:
    for vm in vms:
        for operation in ("prepare", "start", "started"):
            arguments = [vm.name, operation, "begin", "-"]
            assert entry.main(arguments, io.BytesIO(vm.xml), io.StringIO(), str(root)) == 0


def test_status_names_claims_knobs_originals_and_holders(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It tells who holds what at which value, and what it was."""
    start(root, A, B)
    for path in root.glob("proc/irq/*/effective_affinity_list"):  # no kernel moves them here
        path.write_text("0\n")
    assert main(["status", "--root", str(root), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [
        (claim["name"], claim["exclusive"], claim["state"]) for claim in document["claims"]
    ] == [
        ("a", "6-7", "pending"),
        ("b", "4-5", "pending"),
    ]
    knobs = {knob["knob"]: knob for knob in document["knobs"]}
    assert knobs["irq/1"] == {
        "knob": "irq/1", "original": "4-5", "held": "0-3", "settled": True, "by": ["b"],
        "place": "/proc/irq/1/smp_affinity_list", "was": "4-5", "should": "0-3", "now": "0-3",
        "state": "held", "why": "", "remedy": "",
    }  # fmt: skip
    assert knobs["irq/0"]["by"] == ["a", "b"]
    assert main(["status", "--root", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == ["a: 6-7", "b: 4-5"]
    (held,) = [line for line in lines if " held (" in line]
    assert held.startswith(f"  {len(knobs)} held (")
    assert held.endswith("): as the VMs that live ask for it")


def processes(root: Path, *gone: str) -> None:
    """Remove processes by their names."""
    for path in (root / "proc").iterdir():
        if (path / "stat").exists() and path.name.isdecimal():
            name = (path / "stat").read_text().partition("(")[2].partition(")")[0]
            if name in gone:
                shutil.rmtree(path)


def test_status_tells_a_vm_that_has_ended_from_one_that_runs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process is gone, or its end is on record: nothing of it runs, or is missing."""
    start(root, A, B)
    (root / f"run/kvmhooks/released.{A.key}").touch()
    assert main(["status", "--root", str(root), "--json"]) == 0
    claims = json.loads(capsys.readouterr().out)["claims"]
    assert [(claim["name"], claim["state"], claim["follower"]) for claim in claims] == [
        ("a", "ended", None),
        ("b", "pending", None),
    ]
    processes(root, "libvirtd")
    assert main(["status", "--root", str(root)]) == 0
    lines = capsys.readouterr().out.split("\n")
    pid = claims[0]["pid"]
    ended = f"ended, process {pid} no longer runs: run `kvmhooks reconcile`"
    assert lines[0] == f"a: 6-7, {ended}"
    assert lines[1] == f"b: 4-5, {ended}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["python3", "hook", "--follow", A.key], "starting"),
        (["python3", "hook", "--root", "/x", "--follow", A.key], "starting"),
        (["python3", "hook", "--follow", B.key], "missing"),
        (["python3", "hook", "--follow", A.key, "x"], "missing"),
        (["pgrep", f"--follow {A.key}"], "missing"),
        ([], "missing"),
    ],
)
def test_a_follower_that_is_not_on_record_yet_starts_if_it_is_there(
    root: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    """Its command line says whom it will follow; otherwise it is missing, and only then."""
    start(root, A)
    text = json.loads((root / "run/kvmhooks/state.json").read_text())
    text["held"][A.key]["state"] = "running"
    (root / "run/kvmhooks/state.json").write_text(notation.to_text(text))
    add_process(root, 4_000, "python3")
    (root / "proc/4000/cmdline").write_bytes(b"".join(f"{word}\0".encode() for word in words))
    assert main(["status", "--root", str(root)]) == 0
    line = capsys.readouterr().out.partition("\n")[0]
    assert line.endswith(f", follower {expected}")


def test_a_strangers_process_is_no_follower(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may call his program so."""
    start(root, A)
    add_process(root, 4_000, "python3")
    (root / "proc/4000/cmdline").write_text(f"x\0--follow\0{A.key}\0")
    system = System(str(root))
    assert follower_unit.is_starting(system, A.key)
    owner = System.owner
    monkeypatch.setattr(System, "owner", lambda self, path: owner(self, path) + ("proc" in path))
    assert not follower_unit.is_starting(system, A.key)


def test_undo_gives_one_vms_part_back_or_all(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though they still run."""
    before = snapshot(root)
    start(root, A, B)
    assert main(["undo", "b", "--root", str(root)]) == 0
    assert (root / "proc/irq/0/smp_affinity_list").read_text().strip() == "0-5"
    assert main(["undo", "--all", "--root", str(root), "--json"]) == 0
    assert snapshot(root) == before
    assert main(["undo", "b", "--root", str(root)]) == 1
    assert "found 0 claims of 'b', expected one of: none" in capsys.readouterr().err


def test_reconcile_gives_up_the_claims_of_what_is_gone(root: Path) -> None:
    """The daemon that held them has ended."""
    before = snapshot(root)
    start(root, A)
    for path in (root / "proc").iterdir():
        if (path / "stat").exists() and "(libvirtd)" in (path / "stat").read_text():
            shutil.rmtree(path)
    assert main(["reconcile", "--root", str(root)]) == 0
    after = snapshot(root)
    assert after == {path: text for path, text in before.items() if path in after}
    assert not (root / "run/kvmhooks/state.json").exists()


def test_status_of_a_host_that_nothing_holds(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is made by looking."""
    assert main(["status", "--root", str(root)]) == 0
    assert capsys.readouterr().out == "nothing is held\n"
    assert not (root / "run").exists()


def test_simulate_lists_every_write_and_makes_none(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order; then the start makes exactly these, and the stop as well."""
    xml = tmp_path / "domain.xml"
    xml.write_bytes(A.xml)
    before = snapshot(root)
    assert main(["simulate", str(xml), "--root", str(root), "--json"]) == 0
    assert snapshot(root) == before
    assert not (root / "run").exists()
    writes = json.loads(capsys.readouterr().out)
    start(root, A)
    after = snapshot(root)
    foreseen = {
        write["path"].lstrip("/"): write["value"] for write in writes if write["phase"] != "release"
    }
    changed = {path: after[path] for path in after if after[path] != before[path]}
    tasks = {path for path in changed if path.startswith("proc/") and path.endswith("/status")}
    assert {path: foreseen[path] for path in changed if path not in tasks} == {
        path: text for path, text in changed.items() if path not in tasks
    }
    assert len(foreseen) == len(changed)
    given_back = {write["path"] for write in writes if write["phase"] == "release"}
    assert sorted(given_back) == sorted(f"/{path}" if "task" not in path else path
                                        for path in foreseen)  # fmt: skip


def test_simulate_has_a_row_for_a_word_without_effect(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning before the writes, and the VM would start all the same."""
    policy = '<kvmhooks:power governor="performance"/><kvmhooks:memory numa_balancing="0"/>'
    xml = tmp_path / "domain.xml"
    xml.write_bytes(Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy).xml)
    assert main(["simulate", str(xml), "--root", str(root)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == (
        "warning  policy: power.governor: 'performance' does nothing: the VM has no CPUs of its "
        "own (isolation.exclusive)"
    )
    assert rest[0] == "start    /proc/sys/kernel/numa_balancing: 0"


def test_isolate_tells_of_a_word_that_needs_another(capsys: pytest.CaptureFixture[str]) -> None:
    """It does as far as the words themselves tell: the domain may have what else is needed."""
    words = ["power.epp=128", "storage.scheduler=none", "devices.allow=route"]
    assert main(["isolate", "web", "--print", "--policy", *words]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" does nothing: ")[0] for line in told] == [
        "--policy: devices.allow: 'route'", "--policy: power.epp: '128'",
    ]  # fmt: skip
    more = ["isolation.exclusive=yes", "devices.managed=yes"]
    assert main(["isolate", "web", "--print", "--policy", *words, *more]) == 0
    assert capsys.readouterr().err == ""


def test_simulate_of_a_domain_without_policy_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing would be done, which is not what somebody asks who simulates."""
    xml = tmp_path / "domain.xml"
    xml.write_text("<domain><name>x</name></domain>")
    assert main(["simulate", str(xml)]) == 1
    assert "kvmhooks isolate" in capsys.readouterr().err


def test_isolate_prints_the_element(capsys: pytest.CaptureFixture[str]) -> None:
    """Checked against the table of settings."""
    words = ["--policy", "isolation.exclusive=yes", "power.governor=performance", "--print"]
    assert main(["isolate", "web", *words]) == 0
    expected = '<vm><isolation exclusive="yes"/><power governor="performance"/></vm>\n'
    assert capsys.readouterr().out == expected
    assert main(["isolate", "web", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "web",
        "settings": {"isolation.exclusive": "yes", "power.governor": "performance"},
        "element": expected.strip(),
    }
    assert main(["isolate", "web", "--policy", "power.gouverneur=x", "--print"]) == 1
    assert "did you mean power.governor" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"schema", "man", "completion"}))
def test_every_verb_can_print_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the one that prints nothing else, and those that print files as they are."""
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("virsh") is None, reason="no virsh here")
def test_isolate_writes_what_the_hook_reads(tmp_path: Path) -> None:
    """libvirt's test driver defines a domain, takes the element, and dumps it again."""
    from kvmhooks.cli.isolate import element_of
    from kvmhooks.isolate.claims.domain_xml import read_claim

    element = element_of({"isolation.strict": "yes", "power.governor": "performance"})
    script = tmp_path / "script"
    script.write_text(
        f"metadata test --uri urn:kvmhooks:1 --key kvmhooks --set '{element}' --config\n"
        "dumpxml test --inactive\n"
    )
    with script.open() as stdin:
        done = subprocess.run(
            ["virsh", "-q", "-c", "test:///default"],
            stdin=stdin, capture_output=True, text=True, check=True,
        )  # fmt: skip
    claim = read_claim(done.stdout[done.stdout.index("<domain") :].rpartition(">")[0] + ">")
    assert claim is not None
    assert claim.strict
    assert claim.settings == (("power.governor", "performance"),)
