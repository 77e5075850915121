"""The effect of partitions on the host's own threads, and of others' partitions on a guest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from . import isolated
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*AS_INSTALLED)

A, B = (6, 7), (4, 5)
STRANGER = "/sys/fs/cgroup/stranger"
WORKQUEUES = "/sys/devices/virtual/workqueue/cpumask"
BY_PARTITION = AS_INSTALLED[1:]
"""Those whose kernels make remote partitions."""

MASKS = """\
import glob, json, os
found = {}
for path in glob.glob("/proc/[0-9]*/stat"):
    try:
        text = open(path).read()
        mask = sorted(os.sched_getaffinity(int(path.split("/")[2])))
    except (FileNotFoundError, ProcessLookupError):
        continue
    flags = int(text[text.rindex(")") + 2 :].split()[6])
    if flags & 0x00200000 and not flags & 0x04000000:
        found[text[: text.rindex(")") + 1]] = mask
print(json.dumps(found))
"""
"""The CPUs of each kernel thread that may be moved, by its number and name."""

BORN = """\
import os, time
files = []
for name in ("cpu", "io", "memory"):
    path = f"/sys/fs/cgroup/system.slice/{name}.pressure"
    files.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    os.write(files[-1], b"some 150000 1000000\\0")
time.sleep(10000)
"""
"""Have the kernel start a thread of its own, psimon, that watches a group for us."""


def masks(lab: Lab) -> dict[str, list[int]]:
    lab.put("/root/masks.py", MASKS)
    found: dict[str, list[int]] = json.loads(lab.output("python3 /root/masks.py"))
    return found


def bear(lab: Lab) -> None:
    """Have kernel threads be born, by us and by systemd."""
    known = masks(lab).keys()
    lab.put("/root/born.py", BORN)
    isolated.spawn(lab, "python3 /root/born.py", "system.slice")
    lab.output("systemctl daemon-reload; sleep 2", seconds=60)
    assert masks(lab).keys() - known, "no kernel thread was born"


def occupy(lab: Lab, cpus: str) -> None:
    """Somebody makes an isolated partition."""
    lab.output(
        f"echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control; mkdir {STRANGER}; cd {STRANGER}; "
        f"echo {cpus} > cpuset.cpus; echo isolated > cpuset.cpus.partition"
    )
    assert lab.output(f"cat {STRANGER}/cpuset.cpus.partition").strip() == "isolated"


def test_kernel_threads_are_as_they_were_and_new_ones_like_all_others(lab: Lab) -> None:
    """After two guests in overlapping lives each thread of the kernel's, of a node too, has the
    CPUs that it had, and one that was born meanwhile has all. So has that of an interrupt, but
    where the kernel has spread it and its interrupt has not come since."""
    before = masks(lab)
    isolated.start(lab, "a", A)
    bear(lab)
    isolated.start(lab, "b", B)
    isolated.stop(lab, "a")
    isolated.stop(lab, "b")
    after = masks(lab)
    assert lab.output("kvmhooks status") == "nothing is held"
    if lab.snapshot().spread:
        for name in after:
            if "(irq/" in name and len(after[name]) == 8:
                before.pop(name, None)
    assert {name: after.get(name, mask) for name, mask in before.items()} == before
    assert {
        name: after[name] for name in after.keys() - before.keys() if len(after[name]) < 8
    } == {}


@pytest.mark.variants(*BY_PARTITION)
def test_a_partition_that_ends_meanwhile_is_nobodys_original(lab: Lab) -> None:
    """Somebody's isolated partition is there when a guest starts and gone when it stops: kernel
    threads, pinned tasks and workqueues have its CPUs again."""
    isolated.pin_tasks(lab)
    before, tasks = masks(lab), lab.snapshot()
    occupy(lab, "2-3")
    isolated.start(lab, "a", A)
    assert isolated.measure(lab, "a", A, 2).is_alone
    lab.output(f"echo member > {STRANGER}/cpuset.cpus.partition; rmdir {STRANGER}")
    isolated.stop(lab, "a")
    after = masks(lab)
    whole = {name: mask for name, mask in before.items() if len(mask) == 8}
    assert {name: after.get(name, mask) for name, mask in whole.items()} == whole
    assert lab.output(f"cat {WORKQUEUES}").strip() == "ff"
    left = [line for line in tasks.diff(lab.snapshot()) if "sleep" in line]
    assert left == []


@pytest.mark.variants(*BY_PARTITION)
def test_a_guest_on_the_cpus_of_somebodys_partition_is_refused(lab: Lab) -> None:
    """Before anything is changed, and the group is named: libvirt would say that it cannot set an
    affinity."""
    occupy(lab, "6-7")
    lab.put("/root/a.xml", isolated.owning("a", A))
    result = lab.run("virsh -q create /root/a.xml", seconds=180)
    assert result.exit_code != 0
    assert "a: CPUs 6-7 are in a partition of the group /stranger" in result.stderr, result.stderr
    assert lab.output("kvmhooks status") == "nothing is held"
