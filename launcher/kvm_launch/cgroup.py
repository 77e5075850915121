"""The control groups of a VM: the same tree as libvirt's, so that the same partitions work.

====================  =============================================================
cgroup v2, systemd    ``machine.slice/machine-kvm-launch-NAME.scope/libvirt/``
cgroup v2             ``machine/kvm-launch-NAME/libvirt/``
cgroup v1, cpuset     ``machine/kvm-launch-NAME/``
====================  =============================================================

with ``emulator``, ``vcpuN`` and ``iothreadN`` in it (https://libvirt.org/cgroups.html). On v2 these
are threaded groups, and what is above them is their threaded domain: «Threads» in the kernel's
cgroup-v2.rst. Everything goes through the door of ``kvmhooks.isolate``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.groups import LAUNCHED, Groups, launched_group, remove_groups, sweep
from kvmhooks.values import CpuSet

SLICE: Final = "machine.slice"

SECONDS: Final = 5.0
"""How long systemd may take to move a process, or to remove a scope that is empty."""

_POLL: Final = 0.005


class Tree:
    """The groups of one VM; nothing is done where there is no CPU set hierarchy."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._groups = Groups.find(door, ())
        self._has_scope = self._groups.is_unified and door.has("run/systemd/system")
        self._top = ""
        """The VM's own group, once it is there."""

    def enter(self, name: str, pid: int) -> None:
        """Make the group of the VM ``name`` and move a process there, which has one thread.

        Raises ``OSError`` or ``IsolationError``.
        """
        if not self._groups.base:
            return
        if self._has_scope:
            self._start_scope(name, pid)
        else:
            self._make_top(name)
        inner = self._inner
        if self._groups.is_unified:
            self._door.make_directory(inner)
            self._door.write(f"{inner}/cgroup.procs", str(pid))
            self._enable(self._top)
        else:
            self._door.write(f"{inner}/cgroup.procs", str(pid))

    def place(self, planned: Mapping[str, CpuSet], tasks: Callable[[], Mapping[str, str]]) -> None:
        """Give each role its group with its CPUs, and move its threads there.

        ``planned`` is the CPUs by group (``vcpu0``), ``tasks`` tells every thread with its group;
        it is asked until there is none that was not moved. Raises ``OSError``.
        """
        if not self._top:
            return
        for group in planned:
            self._make_inner(group)
        if self._groups.is_unified:
            self._enable(self._inner)
        for group, cpus in planned.items():
            self._door.write(f"{self._inner}/{group}/cpuset.cpus", str(cpus))
        file = "cgroup.threads" if self._groups.is_unified else "tasks"
        seen: set[str] = set()
        while fresh := {tid: group for tid, group in tasks().items() if tid not in seen}:
            for tid, group in fresh.items():
                try:
                    self._door.write(f"{self._inner}/{group}/{file}", tid)
                except ProcessLookupError:  # a helper thread that has ended
                    continue
            seen |= fresh.keys()

    def remove(self) -> None:
        """Remove the groups of a VM whose QEMU has ended; what still holds a task stays.

        systemd removes a scope that is empty. Raises ``OSError``.
        """
        if not self._top:
            return
        if not self._has_scope:
            remove_groups(self._door, self._top)
            sweep(self._door)
        else:
            remove_groups(self._door, self._inner)
            self._wait(lambda: not self._door.has(f"{self._top}/cgroup.procs"))
        self._top = ""

    @property
    def _inner(self) -> str:
        """Where the groups of the threads are."""
        return f"{self._top}/libvirt" if self._groups.is_unified else self._top

    def _start_scope(self, name: str, pid: int) -> None:
        unit = f"machine-{LAUNCHED}{escaped(name)}.scope"
        systemd = self._door.systemd()
        if systemd is None:
            raise IsolationError("systemd has gone")
        mine = (self._groups.of_process(self._door, pid) or "").rpartition("/")[2]
        with systemd:
            systemd.start_scope(
                unit,
                pid,
                parent=SLICE,
                about=f"Virtual machine {name}",
                before=mine if mine.endswith((".service", ".scope")) else "",
            )
        path = f"{SLICE}/{unit}"
        if not self._wait(lambda: self._groups.of_process(self._door, pid) == path):
            raise IsolationError(f"systemd did not move process {pid} to {unit} in {SECONDS:.0f} s")
        self._top = f"{self._groups.base}/{path}"

    def _make_top(self, name: str) -> None:
        self._top = f"{self._groups.base}/{launched_group(name)}"
        above = self._top.rpartition("/")[0]
        self._make(above)
        if self._groups.is_unified:
            self._enable(self._groups.base)
            self._enable(above)
        self._make(self._top)

    def _make(self, path: str) -> None:
        """Make a group that may hold tasks: a v1 one needs CPUs and memory nodes for that."""
        self._door.make_directory(path)
        if self._groups.is_unified:
            return
        above = path.rpartition("/")[0]
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not self._door.read(f"{path}/{file}"):
                self._door.write(f"{path}/{file}", self._door.read(f"{above}/{file}"))

    def _make_inner(self, group: str) -> None:
        path = f"{self._inner}/{group}"
        self._make(path)
        if self._groups.is_unified:
            self._door.write(f"{path}/cgroup.type", "threaded")

    def _enable(self, path: str) -> None:
        """Let the children of a group have CPU sets."""
        file = f"{path}/cgroup.subtree_control"
        if "cpuset" not in self._door.read(file).split():
            self._door.write(file, "+cpuset")

    def _wait(self, is_done: Callable[[], bool]) -> bool:
        until = self._door.now() + SECONDS
        while not is_done():
            if self._door.now() >= until:
                return False
            self._door.sleep(_POLL)
        return True


def group_of(role: str) -> str:
    """The group of a role: ``vcpu0`` for ``vCPU 0``."""
    return role.replace(" ", "").lower()


def escaped(name: str) -> str:
    """A VM's name as part of a unit's, which may hold no ``+`` (systemd.unit(5))."""
    return name.replace("+", "\\x2b")
