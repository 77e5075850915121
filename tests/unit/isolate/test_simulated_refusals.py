"""`simulate` tells what the host would not take, as the run itself would: by a table of values."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.cli.main import main
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm
from tests.laws.test_settings import words
from tests.unit.isolate.test_policy_knobs import BEFORE, CPU

POLICY = f"{CPU}/cpufreq/policy4"
GOVERNORS = {f"{POLICY}/scaling_available_governors": "performance powersave"}
PREFERENCES = {
    f"{POLICY}/energy_performance_available_preferences": "performance balance_power power"
}
DEP = {"lib/modules/6.1.0-model/modules.dep": (
    "kernel/drivers/cpufreq/cpufreq_ondemand.ko.xz:\nkernel/block/bfq.ko: kernel/lib/x.ko\n"
    "kernel/block/kyber-iosched.ko.zst:\n")}  # fmt: skip
ACTIVE = {f"{POLICY}/scaling_driver": "intel_pstate"}
QUEUE = "/sys/class/block/sdb/queue/scheduler"
CHOSEN = "performance, powersave"

TABLE = [
    ("power.governor", "performance", GOVERNORS, ""),
    ("power.governor", "nosuch", {}, ""),  # a host that tells no choices
    ("power.governor", "nosuch", GOVERNORS,
     f"/{POLICY}/scaling_governor: found 'nosuch', expected one of {CHOSEN}"),
    ("power.governor", "nosuch", GOVERNORS | DEP,
     f"/{POLICY}/scaling_governor: found 'nosuch', expected one of {CHOSEN}"),
    ("power.governor", "ondemand", GOVERNORS | DEP, ""),
    ("power.governor", "ondemand", GOVERNORS | DEP | ACTIVE,
     f"/{POLICY}/scaling_governor: found 'ondemand', expected one of {CHOSEN}"),
    ("power.epp", "power", PREFERENCES, ""),
    ("power.epp", "128", PREFERENCES, ""),
    ("power.epp", "256", PREFERENCES, (f"/{POLICY}/energy_performance_preference: found '256', "
     "expected one of performance, balance_power, power")),
    ("power.epp", "nosuch", PREFERENCES, (f"/{POLICY}/energy_performance_preference: found "
     "'nosuch', expected one of performance, balance_power, power")),
    ("storage.scheduler", "none", {}, ""),
    ("storage.scheduler", "bfq", {}, f"{QUEUE}: found 'bfq', expected one of none, mq-deadline"),
    ("storage.scheduler", "bfq", DEP, ""),
    ("storage.scheduler", "kyber", DEP, ""),
    ("storage.scheduler", "nosuch", DEP,
     f"{QUEUE}: found 'nosuch', expected one of none, mq-deadline"),
    ("kernel.perf_cpu_limit", "100", {}, ""),
    ("kernel.perf_cpu_limit", "101", {},
     "/proc/sys/kernel/perf_cpu_time_max_percent: found 101, expected at most 100"),
    ("kernel.rt_runtime", "1000001", {}, ""),
    ("kernel.rt_runtime", "-1", {"proc/sys/kernel/sched_rt_period_us": "1000000"}, ""),
    ("kernel.rt_runtime", "1000001", {"proc/sys/kernel/sched_rt_period_us": "1000000"},
     "/proc/sys/kernel/sched_rt_runtime_us: found 1000001, expected at most 1000000"),
]  # fmt: skip
"""Setting, value, what the host has besides, and what is told."""


def guest(root: Path, files: dict[str, str], settings: dict[str, str]) -> str:
    """Plant a host and a VM of its own; return the VM's file."""
    plant(Kernel("plain", 8, 2), root)
    for path, text in (BEFORE | files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    policy = words({"isolation.exclusive": "yes"} | settings)
    vm = Vm("a", CpuSet({6, 7}), CpuSet({0, 1}), policy)
    vm.devices = "<devices><disk type='block'><source dev='/dev/sdb'/></disk></devices>"
    file = root.parent / "a.xml"
    file.write_bytes(vm.xml)
    return str(file)


@pytest.mark.parametrize(("setting", "value", "files", "message"), TABLE)
def test_a_value_that_the_kernel_would_refuse_is_a_warning(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    value: str,
    files: dict[str, str],
    message: str,
) -> None:
    """It stands before the writes and is none of them; `strict` refuses the start with it."""
    file = guest(tmp_path / "root", files, {setting: value})
    root = ["--root", str(tmp_path / "root")]
    assert main(["simulate", file, *root]) == 0
    told = capsys.readouterr().out
    rows = [line for line in told.splitlines() if line.startswith("warning")]
    assert [row.partition(": ")[2] for row in rows] == ([message] if message else [])
    assert f": {value}\n" not in told or not message
    if message:
        file = guest(tmp_path / "root", files, {setting: value, "isolation.strict": "yes"})
        assert main(["simulate", file, *root]) == 1
        assert "a: strict, and 1 could not be met: " in capsys.readouterr().err


PF, UUID = "0000:3b:00.0", "c2177883-f1bb-47f0-914d-32a22e3a8804"
ABSENT = {
    "devices.functions": (f"{PF}/1 vlan=5", f"a: {PF}/1: found no such device, expected a card"),
    "devices.pools": (f"{PF}=8", f"a: {PF}: found no such device, expected a card"),
    "devices.mdevs": (f"{UUID}={PF}/nvidia-35", f"a: {UUID}: "),
}
"""A setting about a device, and what is said of one that is not there."""


@pytest.mark.parametrize("setting", ABSENT)
@pytest.mark.parametrize("has_card", [False, True])
def test_a_device_that_is_not_there_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, *, has_card: bool
) -> None:
    """It names the place, what was found and what was expected; so for a card that makes none."""
    value, message = ABSENT[setting]
    there = {f"sys/bus/pci/devices/{PF}/class": "0x020000"} if has_card else {}
    file = guest(tmp_path / "root", there, {setting: value})
    assert main(["simulate", file, "--root", str(tmp_path / "root")]) == 1
    told = capsys.readouterr().err
    assert told.startswith(message.partition("found no such")[0] if has_card else message)
    assert "found " in told
    assert "expected " in told
    assert (told.count("\n"), "Errno" in told) == (1, False)
