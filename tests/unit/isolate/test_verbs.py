"""The verbs for people, on a tree of files."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmhooks.cli.main import VERBS, main
from kvmhooks.isolate import hook
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant, snapshot
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
            assert hook.main(arguments, io.BytesIO(vm.xml), io.StringIO(), str(root)) == 0


def test_status_names_claims_knobs_originals_and_holders(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who holds what at which value, and what it was."""
    start(root, A, B)
    assert main(["status", "--root", str(root), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["exclusive"], one["state"]) for one in said["claims"]] == [
        ("a", "6-7", "pending"),
        ("b", "4-5", "pending"),
    ]
    knobs = {one["knob"]: one for one in said["knobs"]}
    assert knobs["irq/1"] == {
        "knob": "irq/1", "original": "4-5", "held": "0-3,6-7", "settled": True, "by": ["b"],
    } | {"held": knobs["irq/1"]["held"]}  # fmt: skip
    assert knobs["irq/1"]["held"] == "0-3"
    assert knobs["irq/0"]["by"] == ["a", "b"]
    assert main(["status", "--root", str(root)]) == 0
    assert "  irq/1: 4-5 -> 0-3 (b)\n" in capsys.readouterr().out


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
        one["path"].lstrip("/"): one["value"] for one in writes if one["phase"] != "release"
    }
    changed = {path: after[path] for path in after if after[path] != before[path]}
    tasks = {path for path in changed if path.startswith("proc/") and path.endswith("/status")}
    assert {path: foreseen[path] for path in changed if path not in tasks} == {
        path: text for path, text in changed.items() if path not in tasks
    }
    assert len(foreseen) == len(changed)
    given_back = {one["path"] for one in writes if one["phase"] == "release"}
    assert sorted(given_back) == sorted(f"/{path}" if "task" not in path else path
                                        for path in foreseen)  # fmt: skip


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
    from kvmhooks.isolate.domain import read_claim

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
