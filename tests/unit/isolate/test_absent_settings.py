"""The settings that a host has nothing for: told with their files, before and not after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmhooks.cli import simulate
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.registry.absent_settings import warnings
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import ISOLATION, Vm
from tests.unit.isolate.test_policy_knobs import BEFORE, POLICY

CPU = "sys/devices/system/cpu"
MISSING = {
    "power.governor performance": f"{CPU}/cpufreq/policy0/scaling_governor",
    "power.latency n/a": f"{CPU}/cpu6/power/pm_qos_resume_latency_us",
    "power.boost yes": f"{CPU}/cpufreq/boost",
    "memory.ksm 0": "sys/kernel/mm/ksm/run",
    "kernel.halt_poll 0": "sys/module/kvm/parameters/halt_poll_ns",
    "isolation.watchdog yes": "proc/sys/kernel/watchdog_cpumask",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with nothing that a policy is about, but its memory's settings."""
    plant(Kernel("plain", 8, 2), tmp_path)
    path = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("always [madvise] never")
    return tmp_path


def vm() -> Vm:
    return Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), POLICY)


def test_each_is_told_with_the_file_that_it_lacks(root: Path) -> None:
    """A file that is there is not told of."""
    claim = read_claim(vm().xml)
    assert claim is not None
    found = warnings(System(str(root)), [claim])
    for setting, path in MISSING.items():
        assert f"a: {setting} does nothing here: this host has no /{path}" in found
    assert not any("memory.thp" in sentence for sentence in found)
    for path, text in BEFORE.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    assert warnings(System(str(root)), [claim]) == []


def test_what_is_of_own_cpus_is_told_of_without_any() -> None:
    """The VM's own word does nothing then, whatever the host has; a default for all is none."""
    kernel = Kernel("plain", 8, 2)
    policy = '<kvmhooks:power epp="128"/><kvmhooks:memory thp="never"/>'
    guest = Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy)
    claim = read_claim(guest.xml)
    assert claim is not None
    expected = (
        "a: power.epp 128 does nothing here: it is of CPUs of the VM's own (isolation.exclusive)"
    )
    assert warnings(kernel, [claim]) == [expected]
    document = claim.to_json() | {"origins": {"power.epp": "/etc/kvmhooks/kvmhooks.toml"}}
    assert warnings(kernel, [Claim.from_json(document)]) == []


def test_simulate_tells_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row of the phase ``warning`` stands beside the writes."""
    domain = root / "a.xml"
    policy = f'{ISOLATION}<kvmhooks:kernel halt_poll="0"/>'
    domain.write_bytes(Vm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy).xml)
    assert simulate.main("simulate", [str(domain), "--root", str(root), "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["phase"] == "warning"]
    path = "/sys/module/kvm/parameters/halt_poll_ns"
    expected = f"a: kernel.halt_poll 0 does nothing here: this host has no {path}"
    assert [row["value"] for row in rows if row["path"] == "host"] == [expected]
