"""kvm-launch gives a VM its CPUs alone on a real kernel, and the host back however it ends."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from . import guests
from .variants import VARIANTS

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*VARIANTS)

SPEC = """
name = "{name}"
machine.accel = "kvm"
memory.size = "128MiB"
isolation.exclusive = true
shutdown.timeout = 60

[boot]
kernel = "{kernel}"
initrd = "{initrd}"
cmdline = "{command_line}"

[cpu]
vcpus = 2
placement = "dedicated"
threads = 2
"""

CANARIES = """
for cpus in 2 3 6 7; do
    setsid taskset -c $cpus sleep 3000 < /dev/null > /dev/null 2>&1 &
done
"""
"""Tasks whose owner has pinned them, also to CPUs that will be taken."""


class Launched:
    """A VM under kvm-launch in the lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        lab.put(
            f"/root/{name}.toml",
            SPEC.format(
                name=name,
                kernel=guests.KERNEL,
                initrd=guests.INITRD,
                command_line=f"{guests.COMMAND_LINE} {guests.HOLD}",
            ),
        )

    def start(self) -> None:
        """Start it, as a service would, and wait until its guest is up."""
        log, name = guests.log_of(self.name), self.name
        text = f"echo $$ > /root/{name}.pid; exec kvm-launch --json /root/{name}.toml"
        self.lab.output(
            f"rm -f /root/{name}.code; (bash -c '{text}' > /root/{name}.json 2> {log} < /dev/null;"
            f" echo $? > /root/{name}.code) > /dev/null 2>&1 &"
        )
        guests.wait_for(self.lab, log, "NESTED-HOLD")

    def stop(self, how: str = "TERM") -> int:
        """Signal kvm-launch and wait for its end; its exit code comes back."""
        self.lab.output(f"kill -{how} $(cat /root/{self.name}.pid)")
        self.lab.output(f"until [ -s /root/{self.name}.code ]; do sleep 0.2; done", seconds=90)
        return int(self.lab.output(f"cat /root/{self.name}.code"))

    def qemu(self) -> str:
        """The pid of its QEMU; empty when there is none."""
        return self.lab.run(
            f"pgrep -f '^[^ ]*qemu-system-x86_64 .*guest={self.name},'"
        ).stdout.strip()

    def cpus(self) -> tuple[int, ...]:
        """Its own CPUs, by the record."""
        said = json.loads(self.lab.output("kvmhooks status --json"))
        (claim,) = (one for one in said["claims"] if one["name"] == self.name)
        assert (claim["driver"], claim["state"]) == ("kvm-launch", "running")
        assert str(claim["pid"]) == self.qemu()
        first, _, last = claim["exclusive"].partition("-")
        return tuple(range(int(first), int(last) + 1))

    def intruders(self, seconds: float = 3) -> dict[str, int]:
        """How often something else ran on its CPUs."""
        cpus = self.cpus()
        own = self.lab.output(f"ls /proc/{self.qemu()}/task").split()
        ran = [one for one in self.lab.switches(cpus, seconds) if str(one.pid) not in own]
        taken = [one for one in self.lab.irqs(cpus, seconds) if one.is_device]
        return {
            "user": sum(one.switches for one in ran if one.is_kernel is False),
            "device interrupts": sum(one.count for one in taken),
        }


@pytest.fixture
def warm(lab: Lab) -> Lab:
    """A lab on which such a VM has run, and whose owner has then pinned tasks."""
    vm = Launched(lab, "first")
    vm.start()
    assert vm.stop() == 0, lab.output("cat /root/first.log")
    lab.output(CANARIES)
    time.sleep(2)
    return lab


def left_behind(lab: Lab, before: object) -> list[str]:
    """What differs, but for a CPU set that has the possible mask where it had none."""
    time.sleep(2)
    lab.output("rm -f /root/own.*")
    found = before.diff(lab.snapshot())  # type: ignore[attr-defined]
    assert lab.output("kvmhooks status") == "nothing is held"
    forced = "cpuset.cpus (requested): '' became '0-7'"
    return [line for line in found if not line.endswith(forced)]


def test_a_launched_vm_has_its_cpus_alone_and_leaves_nothing(warm: Lab) -> None:
    """Zero user tasks and device interrupts beside a libvirt guest's; the groups are libvirt's."""
    before = warm.snapshot()
    vm = Launched(warm, "own")
    vm.start()
    group = warm.output(f"grep -E '^0::|:cpuset:' /proc/{vm.qemu()}/cgroup | head -n 1")
    partitions = warm.output("cd /sys/fs/cgroup; cat machine*/*/libvirt/vcpu*/cpuset.cpus.partition"
                             " 2> /dev/null | sort -u; true")  # fmt: skip
    during = vm.intruders()
    code = vm.stop()
    told = json.loads(warm.output("cat /root/own.json"))
    left = left_behind(warm, before)
    print(f"{warm.variant.name}: {during}, {group}, partitions {partitions!r}, {told['isolation']}")
    assert group.endswith("/emulator")
    assert (code, during, left) == (0, {"user": 0, "device interrupts": 0}, [])


@pytest.mark.parametrize("whom", ["QEMU", "the supervisor"])
def test_a_kill_leaves_nothing(warm: Lab, whom: str) -> None:
    """kill -9 of QEMU: 3, and restored; of kvm-launch: QEMU goes with it, reconcile restores."""
    before = warm.snapshot()
    vm = Launched(warm, "own")
    vm.start()
    if whom == "QEMU":
        warm.output(f"kill -9 {vm.qemu()}; until [ -s /root/own.code ]; do sleep 0.2; done")
        assert warm.output("cat /root/own.code") == "3"
    else:
        assert vm.stop("KILL") == 137
        warm.output(f"while [ -e /proc/{vm.qemu() or 'none'} ]; do sleep 0.2; done")
        assert warm.kvmhooks("reconcile").exit_code == 0
        warm.output("rm -rf /run/kvm-launch/own /run/kvm-launch/.own.lock")
    assert left_behind(warm, before) == []
