"""Things that cannot be given back when the last guest stops come later, by nobody's hand."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from . import isolated
from .lab import PATIENCE
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lab import Lab
    from .snapshot import Snapshot
    from .variants import Variant

pytestmark = pytest.mark.variants(*AS_INSTALLED)

CPUS = (6, 7)
OFFLINE = (3, 7)
"""One of the host's, and one of the guest's own."""

CUT = "0-2,4-6"
"""Linux 6.12 itself does not give those CPUs back to processes, pinned ones too, when a guest ended
while they were offline: it does the same beside a guest that kvmhooks knows nothing of."""

UNITS, PROCESSES = 20, 25

CROWD = f"sh -c 'for each in $(seq {PROCESSES}); do sleep 30001 & done; wait'"

WATCH = """
import pathlib, sys, time
files = [pathlib.Path(f"/sys/fs/cgroup/{one}.slice/cpuset.cpus.effective") for one in sys.argv[1:]]
def are_narrow():
    return any(one.exists() and one.read_text().strip() != "0-7" for one in files)
said = pathlib.Path("/root/widened")
said.with_suffix(".ready").touch()
while pathlib.Path("/run/libvirt/qemu/own.pid").exists():
    time.sleep(0.01)
begun = time.monotonic()
while are_narrow():
    time.sleep(0.01)
said.write_text(f"{time.monotonic() - begun:.2f}")
"""
"""Tell how long slices are narrow after QEMU's end."""


def owed(lab: Lab) -> object:
    return json.loads(lab.kvmhooks("status", "--json").stdout)["owed"]


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + PATIENCE * seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.5)


def switch(lab: Lab, value: int) -> None:
    """Take those CPUs offline, or bring them back."""
    for cpu in OFFLINE:
        lab.output(f"echo {value} > /sys/devices/system/cpu/cpu{cpu}/online")


def left(before: Snapshot, lab: Lab) -> list[str]:
    """Return what is not as it was, but where the kernel sends an interrupt, and our lock."""
    found = [
        line
        for line in before.diff(lab.snapshot())
        if not (line.startswith("irq: ") and "(effective)" in line)
        and not line.startswith("kvmhooks: /run/kvmhooks/lock ")
    ]
    if lab.variant.has_remote_partitions:
        found = [line for line in found if not (line.startswith("task: process ") and CUT in line)]
    return found


def assert_all_is_back(before: Snapshot, lab: Lab) -> None:
    """The host is as it was, and nothing of ours runs."""
    eventually(lambda: lab.output("kvmhooks status").strip() == "nothing is held", 120)
    eventually(lambda: lab.run("systemctl is-active kvmhooks-owed.service").exit_code != 0)
    found: list[str] = []
    for _ in range(10):
        time.sleep(1)
        found = left(before, lab)
        if not found:
            break
    assert found == [], "\n".join(found)
    assert lab.run("pgrep -f -- '[-]-settle'").exit_code != 0
    running = "systemctl list-units --state=active,activating,failed --plain --no-legend"
    assert lab.output(f"{running} 'kvmhooks-*'") == ""


def test_a_cpu_that_is_offline_at_the_stop(lab: Lab, variant: Variant) -> None:
    """It comes back later: the host is then as it was, pinned tasks included, without `reconcile`;
    until then one process waits, which is there again when it was killed, and not any longer.
    Kernels from 6.2 on keep the CPU in a mask that is given meanwhile: nothing is owed then."""
    switch(lab, 0)  # the kernel's own changes at that are not ours
    switch(lab, 1)
    isolated.pin_tasks(lab)
    time.sleep(2)
    before = lab.snapshot()
    isolated.start(lab, "own", CPUS)
    switch(lab, 0)
    isolated.stop(lab, "own")
    if variant.has_remote_partitions:
        assert owed(lab) is None
        assert lab.output("kvmhooks status").strip() == "nothing is held"
    else:
        eventually(lambda: isinstance(owed(lab), int))
        print(lab.output("kvmhooks status"))
        if lab.run("systemctl is-active kvmhooks-owed.service").exit_code == 0:
            first = owed(lab)
            lab.output(f"kill -9 {first}")
            eventually(lambda: isinstance(owed(lab), int) and owed(lab) != first)
    switch(lab, 1)
    begun = time.monotonic()
    assert_all_is_back(before, lab)
    print(f"all was back after {time.monotonic() - begun:.1f} s")
    print(lab.output("journalctl -o cat -t kvmhooks | tail -20"))


def test_a_busy_host_has_its_slices_first(lab: Lab) -> None:
    """Hundreds of processes in two slices: when the hook has returned these have all CPUs again,
    and the rest is as before a little later."""
    for at in range(UNITS):
        isolated.spawn(lab, CROWD, ("system.slice", "user.slice")[at % 2])
    isolated.pin_tasks(lab)
    count = UNITS * PROCESSES
    lab.output(f"until [ $(pgrep -cxf 'sleep 30001') = {count} ]; do sleep 0.5; done", seconds=300)
    time.sleep(5)
    before = lab.snapshot()
    isolated.start(lab, "own", CPUS)
    lab.put("/root/watch.py", WATCH)
    lab.output("setsid python3 /root/watch.py system user < /dev/null > /dev/null 2>&1 &")
    lab.output("until [ -e /root/widened.ready ]; do sleep 0.1; done")
    isolated.stop(lab, "own")
    effective = "cat /sys/fs/cgroup/*.slice/cpuset.cpus.effective 2> /dev/null || true"
    now = lab.output(effective).split()
    eventually(lambda: lab.run("cat /root/widened").stdout)
    print(f"narrow for {lab.output('cat /root/widened')} s after QEMU's end; then {now}")
    print(lab.output("journalctl -o cat -t kvmhooks | tail -20"))
    assert set(now) <= {"0-7"}
    lab.output("rm /root/watch.py /root/widened /root/widened.ready")
    assert_all_is_back(before, lab)
