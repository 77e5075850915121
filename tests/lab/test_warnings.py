"""Warnings to a person: units that cannot start, threads astray, vCPUs plugged in, ends."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from . import guests, isolated
from .lab import PATIENCE
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lab import Lab
    from .variants import Variant

pytestmark = pytest.mark.variants(*AS_INSTALLED)

UNITS = """
unit() { printf '[Service]\\nExecStart=/bin/sleep 30000\\n%b\\n' "$2" > /etc/systemd/system/$1; }
unit whole.service 'CPUAffinity=6-7'
unit part.service 'CPUAffinity=1 6'
unit node.service 'CPUAffinity=numa\\nNUMAPolicy=bind\\nNUMAMask=1'
unit plain.service ''
systemctl daemon-reload
systemctl start whole part node plain
"""

PLUGGED = "<vcpupin vcpu='2' cpuset='4'/>"


def status(lab: Lab) -> Any:
    return json.loads(lab.kvmhooks("status", "--json").stdout)


def journal(lab: Lab) -> str:
    return lab.output("journalctl -t kvmhooks -o cat --no-pager")


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + PATIENCE * seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.5)


def ended(lab: Lab, unit: str) -> str:
    """Return the end of a unit's start: its exit code, or the CPUs that it may run on."""
    lab.run(f"systemctl reset-failed {unit}; systemctl restart {unit}; sleep 1")
    exit_code = lab.output(f"systemctl show --value -p ExecMainStatus {unit}")
    if exit_code != "0":
        return exit_code
    pid = lab.output(f"systemctl show --value -p MainPID {unit}")
    return lab.output(f"grep Cpus_allowed_list /proc/{pid}/status").split()[-1]


def test_units_without_a_cpu_left_are_named_before_and_do_not_start(
    lab: Lab, variant: Variant
) -> None:
    """Named by `simulate`, the journal and `status`: those that then end with 215, and no others;
    one CPU left is enough, and an affinity that systemd leaves to be inherited never fails."""
    lab.output(UNITS)
    lab.put("/root/own.xml", isolated.owning("own", (6, 7)))
    lab.output("virsh -q define /root/own.xml && virsh dumpxml own > /root/dump.xml")
    lab.output("virsh -q undefine own --nvram || virsh -q undefine own")
    simulated = lab.kvmhooks("simulate", "/root/dump.xml", "--json")
    assert simulated.exit_code == 0, simulated.stderr
    writes = json.loads(simulated.stdout)
    (warning,) = [write["value"] for write in writes if write["phase"] == "warning"]
    assert warning.endswith("(215/CPUAFFINITY): whole.service (6-7)"), warning
    lab.output("taskset -c -p 6-7 1")  # as CPUAffinity= of system.conf does
    lab.output("virsh -q create /root/own.xml", seconds=180)
    assert f"own: {warning}" in journal(lab).split("\n")
    assert status(lab)["units"] == [warning]
    found = {unit: ended(lab, f"{unit}.service") for unit in ("whole", "part", "node", "plain")}
    print(f"{variant.name}: while it runs {found}")
    assert found == {"whole": "215", "part": "1", "node": "4-5", "plain": "0-5"}
    isolated.stop(lab, "own")
    eventually(lambda: ended(lab, "whole.service") == "6-7")
    assert status(lab)["units"] == []


def test_an_emulator_on_its_vcpus_cpus_is_told_of(lab: Lab) -> None:
    """By the journal and `status`, until it is elsewhere; not where the kernel keeps it off, as
    Linux 7.2 does where the vCPU's group is a partition.

    6.12 calls that partition invalid, and the emulator may run there as soon as the follower has
    done without it.
    """
    isolated.start(lab, "own", (6, 7))
    eventually(lambda: isinstance(status(lab)["claims"][0]["follower"], int))
    lab.output("virsh -q emulatorpin own 0,6 --live")
    warning = (
        "the emulator may run on 6, which its vCPUs should have alone: "
        "run `virsh emulatorpin own CPUS --live`"
    )
    partition = "/sys/fs/cgroup/machine.slice/*own.scope/libvirt/vcpu0/cpuset.cpus.partition"
    if lab.output(f"cat {partition} 2> /dev/null || true") == "isolated":
        assert status(lab)["claims"][0]["warnings"] == []
        isolated.stop(lab, "own")
        return
    eventually(lambda: status(lab)["claims"][0]["warnings"] == [warning])
    eventually(lambda: f"own: {warning}" in journal(lab).split("\n"))
    lab.output("virsh -q emulatorpin own 0-1 --live")
    assert status(lab)["claims"][0]["warnings"] == []
    isolated.stop(lab, "own")


def hotpluggable(name: str) -> str:
    """A guest with two of three vCPUs, on CPUs 6 and 7, and the third on 4 once it is there."""
    text = isolated.owning(name, (6, 7)).replace("<vcpu>2</vcpu>", "<vcpu current='2'>3</vcpu>")
    text = text.replace("<emulatorpin", f"{PLUGGED}<emulatorpin")
    before, _, rest = text.partition("<topology")
    return before + rest.partition("/>")[2]


def test_a_vcpu_that_is_plugged_in_has_the_cpu_that_the_domain_gives_it(
    used_lab: Lab, variant: Variant
) -> None:
    """Also one that it was given while the VM ran; a vCPU that has none is told of aloud.
    Afterwards the host is as before."""
    lab = used_lab
    before = lab.snapshot()
    lab.put("/root/hot.xml", hotpluggable("hot"))
    lab.output("virsh -q create /root/hot.xml", seconds=180)
    guests.wait_for(lab, guests.log_of("hot"), "NESTED-HOLD")
    eventually(lambda: isinstance(status(lab)["claims"][0]["follower"], int))
    assert status(lab)["claims"][0]["exclusive"] == "4,6-7"
    lab.output("virsh -q vcpupin hot 2 5 --live")
    lab.output("virsh -q setvcpus hot 3 --live")
    eventually(lambda: status(lab)["claims"][0]["exclusive"] == "4-7")
    claim = status(lab)["claims"][0]
    print(f"{variant.name}: {claim}")
    assert (claim["stale"], claim["warnings"]) == ("", [])
    assert isolated.measure(lab, "hot", (5,), 5.0).user == {}
    isolated.stop(lab, "hot")
    assert status(lab)["claims"] == []
    lab.output("virsh -q create /root/hot.xml", seconds=180)
    eventually(lambda: isinstance(status(lab)["claims"][0]["follower"], int))
    lab.output("virsh -q vcpupin hot 2 0-1 --live")
    lab.output("virsh -q setvcpus hot 3 --live")
    warning = "vCPU 2 may run on 0-1: none of them is its own"
    eventually(lambda: status(lab)["claims"][0]["warnings"] == [warning])
    assert f"hot: {warning}" in journal(lab).split("\n")
    isolated.stop(lab, "hot")
    time.sleep(2)
    left = before.diff(lab.snapshot(), kind="effective")
    assert left == [], "\n".join(left)


@pytest.mark.once  # what is told is of our record and of processes, on any kernel
def test_a_follower_that_starts_is_not_missing_and_a_dead_vm_does_not_run(lab: Lab) -> None:
    """From the moment that libvirt says that the VM runs; and after a `kill -9` that no daemon has
    seen, `status` says that it has ended."""
    lab.put("/root/own.xml", isolated.owning("own", (6, 7)))
    lab.output(
        "virsh -q create /root/own.xml & "
        "while kill -0 $! 2> /dev/null; do kvmhooks status; done > /root/said; "
        "for i in 1 2 3; do kvmhooks status; done >> /root/said; wait",
        seconds=600,
    )
    lines = [
        line for line in lab.output("grep '^own: ' /root/said").split("\n") if "running" in line
    ]
    assert lines, lab.output("cat /root/said")
    assert not [line for line in lines if "missing" in line], set(lines)
    pid = lab.output("cat /run/libvirt/qemu/own.pid")
    daemon = lab.output("pidof libvirtd virtqemud").split()[0]
    lab.output(f"kill -STOP {daemon}; kill -9 {pid}; sleep 2")
    claim = status(lab)["claims"][0]
    assert (claim["state"], claim["follower"], claim["pid"]) == ("ended", None, int(pid))
    assert "own: 6-7, ended, process" in lab.kvmhooks("status").stdout
    lab.kvmhooks("reconcile")
    assert status(lab)["claims"] == []
    lab.output(f"kill -CONT {daemon}")


def test_status_tells_of_drift(lab: Lab, variant: Variant) -> None:
    """An interrupt that somebody lets onto the VM's CPUs again: the file, the values and the VM,
    with exit code 5, until `reconcile` has put it right. Nothing else has drifted before or after.
    """
    isolated.start(lab, "own", (6, 7))
    eventually(lambda: isinstance(status(lab)["claims"][0]["follower"], int))
    before = lab.kvmhooks("status")
    print(f"{variant.name}: {before.stdout}")
    assert (before.exit_code, "drifted" in before.stdout) == (0, False), before.stdout
    held = [knob for knob in status(lab)["knobs"] if knob["state"] == "held"]
    knob = next(
        knob for knob in held if knob["knob"].startswith("irq/") and knob["knob"] != "irq/default"
    )
    assert knob["by"] == ["own"]
    place = knob["place"]
    # In one command: the follower puts it right as soon as it looks at the host for any reason.
    command = f"echo {knob['was']} > {place}; kvmhooks status"
    found: list[Any] = []

    def is_told() -> bool:
        found.append(lab.run(command))
        return bool(found[-1].exit_code == 5)

    eventually(is_told)
    assert (
        f"  drifted: {place}: was {knob['was']}, should be {knob['should']} (own), "
        f"is {knob['was']}: run `kvmhooks reconcile`, which makes it {knob['should']}"
    ) in found[-1].stdout.split("\n")
    assert lab.kvmhooks("reconcile").exit_code == 0
    after = lab.kvmhooks("status")
    assert (after.exit_code, "drifted" in after.stdout) == (0, False), after.stdout
    assert lab.output(f"cat {place}") == knob["should"]
    isolated.stop(lab, "own")
