"""kvm-launch gives a VM its CPUs alone on a real kernel, and the host back however it ends."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from . import guests
from .variants import AS_INSTALLED, VARIANTS

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

    def serve(self) -> None:
        """Start it as a service, and wait until systemd has it for active."""
        unit = f"kvm-launch@{self.name}.service"
        self.lab.output(
            "kvmhooks install-units && mkdir -p /etc/kvm-launch && "
            f"mv /root/{self.name}.toml /etc/kvm-launch/ && systemd-analyze verify {unit}"
        )
        self.lab.output(f"systemctl start {unit}", seconds=120)

    def stop(self, how: str = "TERM") -> int:
        """Signal kvm-launch and wait for its end; its exit code comes back."""
        self.lab.output(f"kill -{how} $(cat /root/{self.name}.pid)")
        self.lab.output(f"until [ -s /root/{self.name}.code ]; do sleep 0.2; done", seconds=90)
        return int(self.lab.output(f"cat /root/{self.name}.code"))

    def finish(self, *, killed: bool) -> None:
        """Stop it in order, or kill kvm-launch and have the next entry restore the host."""
        if not killed:
            self.stop()
            settle(self.lab, self.name, code=0)
            return
        qemu = self.qemu()
        assert self.stop("KILL") == 137
        self.lab.output(f"while [ -e /proc/{qemu or 'none'} ]; do sleep 0.2; done")
        settle(self.lab, self.name)
        self.lab.output(f"rm -rf /run/kvm-launch/{self.name} /run/kvm-launch/.{self.name}.lock")

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


def run_once(lab: Lab) -> None:
    """Have a VM run and end: what the kernel and systemd keep of the first is there then."""
    vm = Launched(lab, "first")
    vm.start()
    vm.stop()
    settle(lab, "first", code=0)


@pytest.fixture
def warm(lab: Lab) -> Lab:
    """A lab on which such a VM has run, and whose owner has then pinned tasks."""
    run_once(lab)
    lab.output(CANARIES)
    time.sleep(2)
    return lab


def left_behind(lab: Lab, before: object) -> list[str]:
    """What differs, but for what the kernel alone does.

    A CPU set with tasks cannot be emptied again.
    """
    time.sleep(2)
    lab.output("rm -f /root/own.*")
    found = before.diff(lab.snapshot())  # type: ignore[attr-defined]
    assert lab.output("kvmhooks status") == "nothing is held"
    forced = "cpuset.cpus (requested): '' became '0-7'"
    return [line for line in found if not line.endswith(forced)]


def settle(lab: Lab, name: str, *, code: int | None = None) -> None:
    """Everything is restored in the end, and kvm-launch ended with ``code``.

    On a busy machine systemd takes longer for its reload than an entry waits: that is exit code 4,
    and the next entry asks again.
    """
    if code is not None:
        late = "host: NOT restored: systemd/reload" in lab.output(f"cat {guests.log_of(name)}")
        assert int(lab.output(f"cat /root/{name}.code")) == (4 if late else code)
    for _ in range(6):
        if lab.kvmhooks("reconcile").exit_code == 0:
            return
    raise AssertionError(lab.kvmhooks("reconcile").stderr)


def test_a_launched_vm_has_its_cpus_alone_and_leaves_nothing(warm: Lab) -> None:
    """Zero user tasks and device interrupts on them; its groups are like libvirt's."""
    before = warm.snapshot()
    vm = Launched(warm, "own")
    vm.start()
    group = warm.output(f"grep -E '^0::|:cpuset:' /proc/{vm.qemu()}/cgroup | head -n 1")
    partitions = warm.output("cd /sys/fs/cgroup; cat machine*/*/libvirt/vcpu*/cpuset.cpus.partition"
                             " 2> /dev/null | sort -u; true")  # fmt: skip
    during = vm.intruders()
    (claim,) = json.loads(warm.output("kvmhooks status --json"))["claims"]
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


@pytest.mark.once
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
