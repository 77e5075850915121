"""The warnings of a domain that is placed anew: told, and only those that are about its place."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from kvmhooks.cli.main import main
from kvmhooks.libvirt.tuning.replan import replan
from kvmhooks.libvirt.tuning.tune import tune
from kvmhooks.survey.sources import Sources
from kvmhooks.survey.survey import take
from tests.fakehost import write_host

DOMAIN = """\
<domain type='kvm'>
  <name>{name}</name><uuid>11111111-2222-3333-4444-55555555555{number}</uuid>
  <memory unit='MiB'>64</memory><vcpu>{count}</vcpu>
  <cputune>{pins}</cputune>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <cpu mode='custom' match='exact'><model>EPYC</model><cache mode='passthrough'/></cpu>
</domain>
"""
"""Of the host's caches a plan would say that this model does not show them."""

TOLD = "early will start with the host, and may want what this VM has then"


def domain(name: str, *cpus: int) -> str:
    """A domain with a vCPU on each of these CPUs."""
    pins = "".join(f"<vcpupin vcpu='{at}' cpuset='{cpu}'/>" for at, cpu in enumerate(cpus))
    return DOMAIN.format(name=name, number=len(cpus), count=len(cpus), pins=pins)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host of 4 CPUs, all of which a domain will have that starts with it."""
    root = write_host(tmp_path, cores=4)
    folder = root / "etc/libvirt/qemu"
    (folder / "autostart").mkdir(parents=True)
    (folder / "early.xml").write_text(domain("early", 0, 1, 2, 3))
    (folder / "autostart/early.xml").symlink_to("/etc/libvirt/qemu/early.xml")
    return root


def test_flaws_of_the_new_place_are_told(root: Path) -> None:
    """But not that its hardware were left out, which it has."""
    found = replan(domain("a", 1, 99).encode(), take(Sources(host=str(root))))
    assert found.warnings == (TOLD,)


def test_tune_tells_it_too(root: Path) -> None:
    """Advice has it, among what is left to the domain's owner."""
    tuned = tune(domain("a", 1, 99), take(Sources(host=str(root))))
    assert TOLD in tuned.advice
    assert not [sentence for sentence in tuned.advice if "cpu.caches" in sentence]
    only = tune(domain("a", 1, 2), take(Sources(host=str(root))), only=["devices"])
    assert TOLD not in only.advice


def test_the_verb_tells_it_beside_the_xml(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error: standard output is libvirt's."""
    document = io.TextIOWrapper(io.BytesIO(domain("a", 1, 99).encode()))
    monkeypatch.setattr(sys, "stdin", document)
    assert main(["replan", "-", "--root", str(root)]) == 0
    out, err = capsys.readouterr()
    assert "<vcpupin" in out
    assert err.splitlines() == [f"warning: {TOLD}"]
