"""A VM of kvm-launch is changed while it runs: its groups, its CPUs and the isolation of both."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from .launched import Launched, left_behind, settle
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*AS_INSTALLED, "nosystemd")

SCOPE = "/sys/fs/cgroup/machine*/*kvm-launch-own*"


def files(lab: Lab, *names: str) -> list[str]:
    """Return the contents of files of the VM's groups."""
    return [lab.output(f"cat {SCOPE}/{name}").strip() for name in names]


def affinities(lab: Lab, vm: Launched) -> list[str]:
    """Return the CPUs that the vCPUs may run on, by the kernel's word."""
    return lab.output(
        f"for t in /proc/{vm.qemu()}/task/*; do grep -q '^CPU ' $t/comm && "
        "grep Cpus_allowed_list $t/status | cut -f 2; done; true"
    ).split()


@pytest.mark.once
def test_a_vm_is_changed_while_it_runs(used_lab: Lab) -> None:
    """Weights, quotas and limits stand in its groups and survive systemd's reload; its vCPUs move,
    alone where they were and where they go; planned anew they come together; nothing is left."""
    lab = used_lab
    before = lab.snapshot()
    vm = Launched(lab, "own")
    tuning = "[tuning]\nshares = 300\ntotal.quota = 150000\nvcpus.quota = 90000\n"
    lab.output(f"printf '{tuning}' >> /root/own.toml".replace("\n", "\\n"))
    vm.start()
    names = ("cpu.weight", "libvirt/cpu.max", "libvirt/vcpu1/cpu.max", "libvirt/memory.max")
    assert files(lab, *names[:3]) == ["300", "150000 100000", "90000 100000"]
    lab.output(
        "kvm-launch set own tuning.shares=500 tuning.memory.hard=1GiB tuning.total.quota=none"
    )
    if lab.variant.has_systemd:
        lab.output("systemctl daemon-reload", seconds=120)
    assert files(lab, *names) == ["500", "max 100000", "90000 100000", str(1 << 30)]
    home = vm.cpus()
    node = home[0] // 4 * 4
    away = [cpu for cpu in range(node, node + 4) if cpu not in home and cpu != 0]
    moved = lab.output(f"kvm-launch set own vcpu.0={home[0]} vcpu.1={away[-1]} emulator=0")
    assert f"vCPU 1: CPUs {home[1]} -> {away[-1]}" in moved
    assert affinities(lab, vm) == [str(home[0]), str(away[-1])]
    assert vm.cpus() == tuple(sorted((home[0], away[-1])))
    time.sleep(2)
    own = lab.output(f"ls /proc/{vm.qemu()}/task").split()
    ran = lab.switches((home[0], away[-1]), 3)
    assert [task for task in ran if str(task.pid) not in own and task.is_kernel is False] == []
    refused = lab.run(f"kvm-launch set own tuning.shares=100 vcpu.0={away[-1]}")
    assert (refused.exit_code, files(lab, "cpu.weight")) == (1, ["500"])
    output = lab.output("kvm-launch reload own")
    assert "CPUs" in output
    assert vm.cpus()[1] == vm.cpus()[0] + 1
    assert lab.output("kvm-launch reload own") == "it stays: nothing would be better"
    print(f"{lab.variant.name}: {moved!r}, then {output!r}")
    vm.stop()
    settle(lab, "own", code=0)
    assert left_behind(lab, before) == []


LEGACY = "/sys/fs/cgroup/{}/machine/kvm-launch-own/{}"

TUNING = """
[tuning]
shares = 300
total.quota = 150000
vcpus.quota = 90000
memory = { hard = "1GiB", swap = "2GiB" }
io.device = [{ path = "/dev/vda", write_bytes = "50MiB" }]
"""


@pytest.mark.variants("v1")
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_vm_is_limited_in_each_hierarchy_of_v1(used_lab: Lab, how: str) -> None:
    """From before QEMU runs to its end, with its threads apart where they have quotas; a change
    that the kernel takes in one order only is made; no group is left, whoever was killed."""
    lab = used_lab
    before = lab.snapshot()
    vm = Launched(lab, "own")
    lab.put("/root/own.toml", lab.output("cat /root/own.toml") + TUNING)
    vm.start()

    def stands(*names: str) -> list[str]:
        paths = [LEGACY.format(name.partition(".")[0], name) for name in names]
        return [lab.output(f"cat {path}") for path in paths]

    names = ("cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes",
             "memory.memsw.limit_in_bytes", "blkio.throttle.write_bps_device")  # fmt: skip
    disk = lab.output("cat /sys/block/vda/dev")
    at_first = ["300", "150000", str(1 << 30), str(2 << 30), f"{disk} {50 << 20}"]
    assert stands(*names) == at_first
    assert lab.output(f"cat {LEGACY.format('cpu', 'vcpu1/cpu.cfs_quota_us')}") == "90000"
    groups = lab.output(
        f"for t in /proc/{vm.qemu()}/task/*; do grep -q '^CPU 1/' $t/comm && cat $t/cgroup; done; "
        "true"
    )
    of = {line.split(":")[1]: line.split(":")[2] for line in groups.splitlines()}
    vm_s = "/machine/kvm-launch-own"
    assert (of["cpuset"], of["memory"]) == (f"{vm_s}/vcpu1", vm_s)
    assert [of[key] for key in of if "cpu" in key.split(",")] == [f"{vm_s}/vcpu1"]
    charged = int(lab.output(f"cat {LEGACY.format('memory', 'memory.usage_in_bytes')}"))
    assert charged > 32 << 20
    lab.output(
        "kvm-launch set own tuning.memory.hard=3GiB tuning.memory.swap=4GiB tuning.shares=none "
        "tuning.total.quota=50000 tuning.vcpus.quota=40000"
    )
    assert stands(*names[:4]) == ["1024", "50000", str(3 << 30), str(4 << 30)]
    vm.finish(killed=how == "killed")
    assert lab.output("ls -d /sys/fs/cgroup/*/machine/kvm-launch-* 2> /dev/null; true") == ""
    assert left_behind(lab, before) == []


@pytest.mark.once
@pytest.mark.variants(*AS_INSTALLED)
def test_a_guest_goes_to_other_cpus_in_another_qemu(used_lab: Lab) -> None:
    """Both QEMUs have CPUs of their own for a moment; the guest runs on, powers off when it is
    asked to there, and the host has everything back."""
    lab = used_lab
    before = lab.snapshot()
    vm = Launched(lab, "own")
    vm.start()
    old, home = vm.qemu(), vm.cpus()
    moved = lab.run("kvm-launch migrate --detach /root/own.toml", seconds=180)
    assert moved.exit_code == 0, moved.stderr
    lab.output("until [ -s /root/own.code ]; do sleep 0.2; done", seconds=90)
    assert lab.output("cat /root/own.code") == "0"
    assert vm.qemu() not in {"", old}
    assert not set(vm.cpus()) & set(home)
    assert vm.intruders() == {"user": 0, "device interrupts": 0}
    print(f"{lab.variant.name}: from CPUs {home} to {vm.cpus()}")
    stopped = lab.run("kvm-launch stop own", seconds=120)
    assert stopped.exit_code == 0, stopped.stderr
    settle(lab, "own")
    assert left_behind(lab, before) == []
