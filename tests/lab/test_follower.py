"""A VM after `started`: its threads' classes, its follower, and pins that move."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from . import isolated
from .lab import PATIENCE
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lab import Lab
    from .variants import Variant

pytestmark = pytest.mark.variants(*AS_INSTALLED)

CPUS = (6, 7)
POLICY = isolated.POLICY.replace(
    "</kvmhooks:vm>",
    '<kvmhooks:threads vcpus="fifo:1" uclamp_min="512" sched_core="vcpus"/></kvmhooks:vm>',
)


def status(lab: Lab) -> Any:
    return json.loads(lab.kvmhooks("status", "--json").stdout)


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + PATIENCE * seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.5)


def classes(lab: Lab) -> dict[str, str]:
    """The scheduling class of each of QEMU's threads, by its name, as chrt(1) tells it."""
    output = lab.output(
        "for t in /proc/$(cat /run/libvirt/qemu/own.pid)/task/*; do "
        'echo "$(cat $t/comm)|$(chrt -p ${t##*/} | head -1)"; done'
    )
    lines = (line.split("|", 1) for line in output.splitlines())
    return {name: policy.rpartition(" ")[2] for name, policy in lines}


def test_threads_and_the_follower_on_a_real_host(used_lab: Lab, variant: Variant) -> None:
    """FIFO for the vCPUs alone; a unit that lives as long as its VM, comes again when it is killed,
    and takes the isolation along; afterwards the host is as before."""
    lab = used_lab
    before = lab.snapshot()
    isolated.start(lab, "own", CPUS, policy=POLICY)
    found = classes(lab)
    vcpus = {name for name in found if name.startswith("CPU ")}
    assert len(vcpus) == 2, found
    assert {found[name] for name in vcpus} == {"SCHED_FIFO|SCHED_RESET_ON_FORK"} or {
        found[name] for name in vcpus
    } == {"SCHED_FIFO"}, found
    assert {policy for name, policy in found.items() if name not in vcpus} == {"SCHED_OTHER"}
    eventually(lambda: isinstance(status(lab)["claims"][0]["follower"], int))
    first = status(lab)["claims"][0]["follower"]
    unit = lab.output(f"ps -o unit= -p {first}").strip()
    assert unit.startswith("kvmhooks-follow-qemu-"), unit
    resident = lab.output(f"grep VmRSS /proc/{first}/status").split()[1]
    lab.output(f"kill -9 {first}")
    eventually(lambda: status(lab)["claims"][0]["follower"] not in {first, "missing"})
    print(f"{variant.name}: {found}, follower {resident} KiB")
    moved = lab.run("virsh -q vcpupin own 1 5 --live")
    if variant.has_remote_partitions:
        assert moved.exit_code != 0, "a partition lets nobody pin away from it"
    else:
        assert moved.exit_code == 0, moved.stderr
        eventually(lambda: status(lab)["claims"][0]["exclusive"] == "5-6")
        assert status(lab)["claims"][0]["stale"] == ""
        default = lab.output("cat /proc/irq/default_smp_affinity").strip()
        assert int(default.replace(",", ""), 16) == 0b10011111
        assert isolated.measure(lab, "own", (5, 6), 5.0).user == {}
    isolated.stop(lab, "own")
    eventually(lambda: lab.run(f"systemctl is-active '{unit}'").exit_code != 0)
    assert status(lab)["claims"] == []
    time.sleep(2)
    left = before.diff(lab.snapshot(), kind="effective")
    assert left == [], "\n".join(left)


@pytest.mark.once_a_release
def test_a_running_guest_moves_to_better_cpus(lab: Lab, variant: Variant) -> None:
    """From two nodes onto one, with its isolation; and then nothing would be better."""
    isolated.start(lab, "own", (2, 6))
    would = lab.kvmhooks("replan", "own", "--dry-run", "--json")
    assert would.exit_code == 0, would.stderr
    document = json.loads(would.stdout)
    assert (document["moved"], document["before"]["nodes"], document["after"]["nodes"]) == (
        False,
        2,
        1,
    ), document
    result = lab.kvmhooks("replan", "own")
    assert result.exit_code == 0, result.stderr
    claim = status(lab)["claims"][0]
    assert (claim["stale"], claim["warnings"]) == ("", [])
    print(f"{variant.name}: {result.stdout}")
    assert len(claim["exclusive"]) == 3, claim
    pins = lab.output("virsh -q vcpupin own").split()
    assert {pins[1], pins[3]} == set(claim["exclusive"].replace("-", ",").split(","))
    document = json.loads(lab.kvmhooks("replan", "own", "--json").stdout)
    assert "nothing would be better" in document["said"]
    isolated.stop(lab, "own")
    assert status(lab)["claims"] == []
