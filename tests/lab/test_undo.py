"""After the last guest the whole host is as it was before the first one, on a real kernel.

All tests of a variant share one host, and each compares with its pristine state: before any guest,
with tasks that their owner has pinned.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from . import isolated, moments
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from .lab import Lab
    from .snapshot import Snapshot

pytestmark = pytest.mark.variants(*AS_INSTALLED, "nosystemd", "v1", "irqbalance")

A, B = (6, 7), (4, 5)

LEAVES_GROUPS = ("nosystemd", "v1")
"""Variants on which libvirt's groups stay: systemd knows nothing of v1's cpuset."""

NOT_THE_HOSTS = (
    "kvmhooks: /run/kvmhooks/lock ",  # our own: removing it, two hooks could lock two of them
    " libvirtd (effective)",  # one test restarts it
    "/run/systemd/units/invocation:libvirtd.service ",
)

FORCED = "cpuset.cpus (requested): '' became '0-7'"
"""A group with tasks cannot be emptied again (ENOSPC); with systemd the whole file goes again."""

BANS = """\
import glob, socket
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(*glob.glob("/run/irqbalance/irqbalance*.sock"))
    peer.send(b"setup")
    print(peer.recv(65536).decode().partition("BANNED ")[2].strip())
"""
"""Ask irqbalance for the mask of the CPUs that it was told to leave alone."""


@dataclass
class Host:
    """The host of all tests here, and how it was."""

    lab: Lab
    pristine: Snapshot

    def left(self) -> list[str]:
        """Return the differences that remain, once the host has had time to settle."""
        has_irqbalance = self.lab.variant.name == "irqbalance"
        for _ in range(30):
            time.sleep(1)
            found = [
                line
                for line in self.pristine.diff(self.lab.snapshot())
                if not any(part in line for part in NOT_THE_HOSTS)
                and (self.lab.variant.has_systemd or not line.endswith(FORCED))
                and not (has_irqbalance and line.startswith("irq: "))
            ]
            if has_irqbalance:
                found += self._banned()
            held = self.lab.output("kvmhooks status")
            if not found and held == "nothing is held":
                return []
        return [*found, held]

    def _banned(self) -> list[str]:
        """The CPUs that irqbalance leaves alone: it moves interrupts as it likes, but for those."""
        self.lab.put("/root/bans.py", BANS)
        banned = self.lab.output("python3 /root/bans.py")
        return [f"irqbalance leaves alone {banned}"] if banned.strip("0,") else []

    def is_alone(self, name: str, cpus: tuple[int, int]) -> bool:
        """Return whether a guest's CPUs are its own."""
        measured = isolated.measure(self.lab, name, cpus, 3)
        print(name, measured)
        return measured.is_alone


@pytest.fixture(scope="module")
def host(shared_lab: Lab) -> Host:
    """A server with pinned tasks, on which no guest has run that owns CPUs.

    Where no systemd ends them with their last guest, libvirt leaves the groups that it made for its
    first one: there a guest without any policy has run.
    """
    if shared_lab.variant.name in LEAVES_GROUPS:
        isolated.start(shared_lab, "plain", A, policy="")
        isolated.stop(shared_lab, "plain")
    isolated.pin_tasks(shared_lab)
    time.sleep(2)
    return Host(shared_lab, shared_lab.snapshot())


def test_one_guest_leaves_nothing(host: Host) -> None:
    """The host's effective and requested state is that of before the first guest, and each pinned
    task has its own mask, whatever its kernel forgot."""
    isolated.start(host.lab, "a", A)
    assert host.lab.kvmhooks("status").stdout.startswith("a: 6-7, running")
    isolated.stop(host.lab, "a")
    assert host.left() == []


@pytest.mark.once
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_two_guests_leave_nothing_in_either_order(host: Host, order: str) -> None:
    """Of two guests either may stop first: the other one stays alone, and then nothing is left."""
    cpus = {"a": A, "b": B}
    for name in "ab":
        isolated.start(host.lab, name, cpus[name])
    isolated.stop(host.lab, order[0])
    assert host.is_alone(order[1], cpus[order[1]])
    isolated.stop(host.lab, order[1])
    assert host.left() == []


@pytest.mark.once
def test_a_guest_that_is_killed_leaves_nothing(host: Host) -> None:
    """`kill -9` of QEMU: libvirt notices and calls the hook."""
    isolated.start(host.lab, "a", A)
    host.lab.output("kill -9 $(cat /run/libvirt/qemu/a.pid)")
    host.lab.output("while virsh -q domstate a; do sleep 0.5; done 2>/dev/null; true", seconds=60)
    assert host.left() == []


@pytest.mark.once
def test_libvirtd_is_killed_in_between(host: Host) -> None:
    """The new daemon's hook keeps the guest alone, and then gives everything back."""
    isolated.start(host.lab, "a", A)
    if host.lab.variant.has_systemd:
        host.lab.output("systemctl kill --signal=KILL libvirtd; sleep 1; systemctl start libvirtd")
    else:
        host.lab.output("kill -9 $(cat /run/libvirtd.pid); sleep 1; libvirtd -d")
    running = "virsh -q domstate a 2> /dev/null | grep -q running"
    host.lab.output(f"until {running}; do sleep 0.5; done", seconds=120)
    assert host.is_alone("a", A)
    isolated.stop(host.lab, "a")
    assert host.left() == []


@pytest.mark.once
def test_an_administrators_masks_stay(host: Host) -> None:
    """Set while a guest lives, they are all that differs in the end."""
    mask = "/sys/devices/virtual/workqueue/cpumask"
    default = "/proc/irq/default_smp_affinity"
    was = host.lab.output(f"cat {mask} {default}").split()
    isolated.start(host.lab, "a", A)
    host.lab.output(f"echo 3 > {mask}; echo f > {default}")
    isolated.stop(host.lab, "a")
    time.sleep(2)
    assert host.lab.output(f"cat {mask} {default}").split() == ["03", "0f"]
    host.lab.output(f"echo {was[0]} > {mask}; echo {was[1]} > {default}")
    assert host.left() == []


@pytest.mark.once
def test_a_hook_killed_at_any_moment_leaves_nothing(host: Host) -> None:
    """At ten random system calls of the hook at a start and at a stop: libvirt's next call, or
    `kvmhooks reconcile`, gives everything back."""

    isolated.start(host.lab, "a", A)
    isolated.stop(host.lab, "a")
    assert host.left() == []
    left: dict[str, list[str]] = {}
    operations = ("prepare", *["start"] * 3, *["started"] * 2, *["release"] * 4)
    for operation, moment in moments.deaths(host.lab, "/root/a.xml", operations):
        if operation == "release":
            reconcile = "kvmhooks reconcile"
            if host.lab.variant.name == "irqbalance":  # it answers nobody while it scans
                reconcile = f"until {reconcile}; do sleep 2; done"
            host.lab.output(reconcile, seconds=60)
        left[f"{operation}: {moment}"] = host.left()
    assert {moment: lines for moment, lines in left.items() if lines} == {}
