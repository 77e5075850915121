"""VMs of kvm-launch that own CPUs, and what is left of them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from . import guests

if TYPE_CHECKING:
    from .lab import Lab
    from .snapshot import Snapshot

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
        document = json.loads(self.lab.kvmhooks("status", "--json").stdout)
        (claim,) = (claim for claim in document["claims"] if claim["name"] == self.name)
        assert (claim["driver"], claim["state"]) == ("kvm-launch", "running")
        assert str(claim["pid"]) == self.qemu()
        first, _, last = claim["exclusive"].partition("-")
        return tuple(range(int(first), int(last) + 1))

    def intruders(self, seconds: float = 3) -> dict[str, int]:
        """Count how often something else ran on its CPUs."""
        cpus = self.cpus()
        own = self.lab.output(f"ls /proc/{self.qemu()}/task").split()
        ran = [task for task in self.lab.switches(cpus, seconds) if str(task.pid) not in own]
        taken = [irq for irq in self.lab.irqs(cpus, seconds) if irq.is_device]
        return {
            "user": sum(task.switches for task in ran if task.is_kernel is False),
            "device interrupts": sum(irq.count for irq in taken),
        }


def run_once(lab: Lab) -> None:
    """Have a VM run and end: the kernel and systemd then keep the traces of a first one."""
    vm = Launched(lab, "first")
    vm.start()
    vm.stop()
    settle(lab, "first", code=0)


def left_behind(lab: Lab, before: Snapshot) -> list[str]:
    """Return the differences, but for what the kernel alone does.

    A CPU set with tasks cannot be emptied again.
    """
    time.sleep(2)
    lab.output("rm -f /root/own.*")
    found = before.diff(lab.snapshot())
    assert lab.output("kvmhooks status") == "nothing is held"
    forced = "cpuset.cpus (requested): '' became '0-7'"
    return [line for line in found if not line.endswith(forced)]


def settle(lab: Lab, name: str, *, code: int | None = None) -> None:
    """Everything is restored in the end, and kvm-launch ended with ``code``.

    On a busy machine systemd takes longer for its reload than an entry waits: that is exit code 4,
    and the next entry asks again.
    """
    if code is not None:
        log = lab.output(f"cat {guests.log_of(name)}")
        late = "host: NOT restored: systemd/reload" in log
        assert int(lab.output(f"cat /root/{name}.code")) == (4 if late else code), log
    for _ in range(6):
        if lab.kvmhooks("reconcile").exit_code == 0:
            return
    raise AssertionError(lab.kvmhooks("reconcile").stderr)
