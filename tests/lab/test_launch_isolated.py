"""kvm-launch gives a VM its CPUs alone on a real kernel, and the host back however it ends."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from .launched import Launched, left_behind, settle
from .variants import AS_INSTALLED, VARIANTS

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*VARIANTS)

CANARIES = """
for cpus in 2 3 6 7; do
    setsid taskset -c $cpus sleep 3000 < /dev/null > /dev/null 2>&1 &
done
"""
"""Tasks whose owner has pinned them, also to CPUs that will be taken."""


@pytest.fixture
def warm(used_lab: Lab) -> Lab:
    """A server on which such VMs have run, and whose owner has then pinned tasks."""
    used_lab.output(CANARIES)
    time.sleep(2)
    return used_lab


def test_a_launched_vm_has_its_cpus_alone_and_leaves_nothing(warm: Lab) -> None:
    """Zero user tasks and device interrupts on them; its groups are like libvirt's."""
    before = warm.snapshot()
    vm = Launched(warm, "own")
    vm.start()
    group = warm.output(f"grep -E '^0::|:cpuset:' /proc/{vm.qemu()}/cgroup | head -n 1")
    partitions = warm.output("cd /sys/fs/cgroup; cat machine*/*/libvirt/vcpu*/cpuset.cpus.partition"
                             " 2> /dev/null | sort -u; true")  # fmt: skip
    during = vm.intruders()
    (claim,) = json.loads(warm.kvmhooks("status", "--json").stdout)["claims"]
    follower = warm.output(f"tr '\\0' ' ' < /proc/{claim['follower']}/cmdline")
    vm.stop()
    settle(warm, "own", code=0)
    told = json.loads(warm.output("cat /root/own.json"))
    left = left_behind(warm, before)
    print(f"{warm.variant.name}: {during}, {group}, partitions {partitions!r}, {told['isolation']}")
    assert group.endswith("/emulator")
    assert f"--follow {claim['driver']}-{claim['uuid']}" in follower
    assert (during, left) == ({"user": 0, "device interrupts": 0}, [])


@pytest.mark.once
@pytest.mark.parametrize("whom", ["QEMU", "the supervisor"])
def test_a_kill_leaves_nothing(warm: Lab, whom: str) -> None:
    """kill -9 of QEMU: 3, and restored; of kvm-launch: QEMU goes with it, reconcile restores."""
    before = warm.snapshot()
    vm = Launched(warm, "own")
    vm.start()
    if whom == "QEMU":
        warm.output(f"kill -9 {vm.qemu()}; until [ -s /root/own.code ]; do sleep 0.2; done")
        settle(warm, "own", code=3)
    else:
        vm.finish(killed=True)
    assert left_behind(warm, before) == []


@pytest.mark.once_a_release
@pytest.mark.variants(*AS_INSTALLED)
def test_a_vm_is_a_service(lab: Lab) -> None:
    """Active when its guest runs, started again after kill -9, powered off by a stop."""
    vm = Launched(lab, "own")
    vm.serve()
    assert json.loads(lab.output("kvm-launch ps --json"))[0]["state"] == "running"
    first = vm.qemu()
    group = lab.output(f"cat /proc/{first}/cgroup")
    assert group.endswith("/machine.slice/machine-kvm-launch-own.scope/libvirt/emulator")
    cpus = vm.cpus()
    lab.output("systemctl kill --kill-whom=main --signal=KILL kvm-launch@own")
    again = "until systemctl is-active -q kvm-launch@own; do sleep 1; done"
    lab.output(f"{again}; while [ -e /proc/{first} ]; do sleep 1; done; {again}", seconds=180)
    assert vm.qemu() not in {"", first}
    assert vm.cpus() == cpus
    lab.output("until journalctl -u kvm-launch@own | tail -n 5 | grep -q NESTED-HOLD; do sleep 1; "
               "done", seconds=180)  # fmt: skip
    lab.output("systemctl stop kvm-launch@own", seconds=180)
    shown = lab.output("systemctl show -P Result -P ActiveState kvm-launch@own").split()
    assert sorted(shown) == ["inactive", "success"]
    assert lab.output("kvmhooks reconcile && kvmhooks status").endswith("nothing is held")
    assert vm.qemu() == ""
