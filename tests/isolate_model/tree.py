"""A model of a host, written as plain files: for hooks that run as processes of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.isolate_model.kernel import Kernel

_HOST_FILES = (
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/possible",
    "proc/sys/kernel/random/boot_id",
    "proc/sys/kernel/osrelease",
    "proc/sys/kernel/numa_balancing",
    "proc/irq/default_smp_affinity",
)
_IDENTITY_FILES = ("chip_name", "hwirq", "actions")


def plant(kernel: Kernel, root: Path) -> None:
    """Write everything that the hook reads; those that run it are there."""
    for path in (*_HOST_FILES, *kernel.masks):
        _write(root, path, kernel)
    for number in kernel.irqs:
        for path in (f"proc/irq/{number}/smp_affinity_list",
                     f"proc/irq/{number}/effective_affinity_list",
                     *(f"sys/kernel/irq/{number}/{name}" for name in _IDENTITY_FILES)):  # fmt: skip
            _write(root, path, kernel)
        handler = kernel.read(f"sys/kernel/irq/{number}/actions")
        (root / f"proc/irq/{number}" / handler).mkdir(exist_ok=True)
    _plant_groups(kernel, root)
    _plant_tasks(kernel, root)


def _plant_groups(kernel: Kernel, root: Path) -> None:
    for group in kernel.groups.root.walk():
        group.has_controller = True
    for group in kernel.groups.root.walk():
        for name in kernel.groups.files(group):
            _write(root, f"{kernel.base}/{group.path}/{name}".replace("//", "/"), kernel)


def _plant_tasks(kernel: Kernel, root: Path) -> None:
    for tid in kernel.tasks:
        _write(root, f"proc/{tid}/cgroup", kernel)
        _write(root, f"proc/{tid}/stat", kernel)
        _write(root, f"proc/{tid}/task/{tid}/stat", kernel)
        text = f"Name:\tx\nCpus_allowed_list:\t{kernel.affinity(tid)}\n"
        (root / f"proc/{tid}/status").write_text(text)
    for pid in (os.getpid(), os.getppid()):  # a hook in a process of its own, and in this one
        add_process(root, pid)


def add_process(root: Path, pid: int, name: str = "libvirtd") -> None:
    """A process of this number is alive in the tree."""
    path = root / f"proc/{pid}/stat"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{pid} ({name}) S 1 0 0 0 0 0 {' '.join(['0'] * 12)} 77 0\n")


def snapshot(root: Path) -> dict[str, str]:
    """Every file and its text; all CPUs in a group's set are as good as none."""
    everything = (root / "sys/devices/system/cpu/possible").read_text().strip()
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and "run/kvmhooks" not in str(path):
            text = path.read_text().strip()
            is_full = path.name == "cpuset.cpus" and text == everything
            found[str(path.relative_to(root))] = "" if is_full else text
    return found


def _write(root: Path, path: str, kernel: Kernel) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(kernel.read(path) + "\n")
