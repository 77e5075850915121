"""The options that say what a plan is made on: each changes something, or is refused."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kvmhooks.cli.main import main
from kvmhooks.inventory.usage import Holding
from kvmhooks.values import CpuSet
from tests.fakehost import write_host

VM = """\
name = "vm"
[cpu]
vcpus = 2
placement = "dedicated"
[memory]
size = "256MiB"
[isolation]
exclusive = true
"""
UUID = "22222222-2222-2222-2222-222222222222"
DEFINED = f"""\
<domain type='kvm'><name>defined</name><uuid>{UUID}</uuid><vcpu>2</vcpu>
<cputune><vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='2'/></cputune></domain>
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of 8 CPUs without KVM, a VM, a domain that is defined there, and holdings."""
    write_host(tmp_path / "host", cores=8, kvm=None)
    domains = tmp_path / "host/etc/libvirt/qemu"
    domains.mkdir(parents=True)
    (domains / "defined.xml").write_text(DEFINED)
    (tmp_path / "vm.toml").write_text(VM)
    held = Holding(name="a", uuid=UUID, exclusive=CpuSet.parse("1-3"))
    (tmp_path / "claims.json").write_text(json.dumps(held.to_json()))
    (tmp_path / "capabilities.xml").write_text("<domainCapabilities/>")
    with tarfile.open(tmp_path / "host.tar", "w") as archive:
        archive.add(tmp_path / "host", "host")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The plan on the captured host with these options."""
    assert main(["plan", "vm.toml", "--host", "host", "--json", *words]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def cpus(plan: dict[str, Any]) -> list[str]:
    """Return the CPUs of its vCPUs."""
    return [pin["cpus"] for pin in plan["vcpus"]]


@pytest.mark.usefixtures("folder")
def test_what_others_hold_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    """A file of holdings, or the domains that are defined."""
    assert cpus(planned(capsys)) == ["2", "3"]
    assert cpus(planned(capsys, "--claims", "claims.json")) == ["5", "6"]
    assert cpus(planned(capsys, "--defined")) == ["4", "5"]


def test_what_runs_it_can_be_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accelerator, and the programs: what these lack is told."""
    plain = planned(capsys)
    assert plain["accel"] == "tcg"
    assert "TCG, QEMU's own emulation: this host has no working /dev/kvm" in plain["why"]
    assumed = planned(capsys, "--assume-kvm")
    assert assumed["accel"] == "kvm"
    assert "KVM is assumed to work" in assumed["why"]
    asked = planned(capsys, "--accel", "tcg")
    assert asked["accel"] == "tcg"
    assert not any("KVM" in reason for reason in asked["why"])
    (folder / "vm.toml").write_text(f"{VM}[sound]\n")
    targets = [
        planned(capsys, *words)["hardware"]["target"]
        for words in ([], ["--libvirt", "11.0"], ["--qemu", "10.1"], ["--libvirt", "0"])
    ]
    assert targets == [
        {"qemu": "7.2", "libvirt": "9.0"},
        {"qemu": "7.2", "libvirt": "11.0"},
        {"qemu": "10.1", "libvirt": "9.0"},
        {"qemu": "7.2", "libvirt": None},
    ]


HOST = ("--host", "host")
REFUSED = {
    ("--assume-kvm",): "--assume-kvm: found this machine, expected --host",
    (*HOST, "--assume-kvm", "--accel", "kvm"): "--assume-kvm: found --accel beside it",
    (*HOST, "--run-dir", "run"): "--run-dir: found --host beside it",
    (*HOST, "--defined", "--claims", "claims.json"): "--defined: found --claims beside it",
    ("--host", "host.tar", "--defined"): "--defined: found no directory in --host",
    (*HOST, "--libvirt", "0", "--capabilities", "capabilities.xml"): "--capabilities: found",
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_an_option_that_would_do_nothing_is_refused(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the options, and what was expected; by every verb that has them."""
    for verb in ("plan", "xml", "argv", "claim"):
        assert main([verb, "vm.toml", *words]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), err.startswith(REFUSED[words])) == ("", 1, True), err


def test_a_verdict_that_is_there_is_no_trial(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No verb starts a guest to try KVM."""
    from kvmhooks.kvm import probe

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a guest was started")

    monkeypatch.setattr(probe, "probe", never)
    for verb in ("plan", "xml", "argv", "claim"):
        assert main([verb, "vm.toml", "--run-dir", str(folder / "run")]) in {0, 1}
    capsys.readouterr()
    assert not (folder / "run").exists()
