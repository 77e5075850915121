"""The control groups of a VM: the same tree as libvirt's, so that the same partitions work.

====================  =============================================================
cgroup v2, systemd    ``machine.slice/machine-kvm-launch-NAME.scope/libvirt/``
cgroup v2             ``machine/kvm-launch-NAME/libvirt/``
cgroup v1             ``machine/kvm-launch-NAME/`` in each hierarchy
====================  =============================================================

with ``emulator``, ``vcpuN`` and ``iothreadN`` in it (https://libvirt.org/cgroups.html). On v2 these
are threaded groups, and what is above them is their threaded domain: «Threads» in the kernel's
cgroup-v2.rst. Everything goes through the system of ``kvmhooks.isolate``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Container, Mapping
from typing import Final

from kvm_launch.host.limits import INNER, OUTER, PROPERTIES, Limits
from kvmhooks.errors import IsolationError
from kvmhooks.isolate.system.system import System
from kvmhooks.isolate.vm.cgroups import (
    LAUNCHED,
    UNIFIED,
    Groups,
    launched_group,
    limiting,
    remove_groups,
    sweep,
)
from kvmhooks.qemu.threads import EMULATOR
from kvmhooks.values import CpuSet

SLICE: Final = "machine.slice"

SECONDS: Final = 5.0
"""The time that systemd may take to move a process, or to remove a scope that is empty."""

_POLL: Final = 0.005

_WHOLE: Final = frozenset({OUTER, INNER})


class GroupTree:
    """The groups of one VM; nothing is done where there is no CPU set hierarchy."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._groups = Groups.find(system, ())
        self.has_scope = self._groups.is_unified and system.has("run/systemd/system")
        """systemd makes the VM's outermost group."""
        self._top = ""
        """The VM's own group, once it is there."""
        self._beside: list[str] = []
        """Its groups in the other hierarchies of v1."""

    @property
    def can_limit(self) -> bool:
        """Groups are there in which ``kvm_launch.host.limits`` can stand."""
        return bool(self._groups.base)

    @property
    def is_unified(self) -> bool:
        """The groups are those of v2."""
        return self._groups.is_unified

    @property
    def is_made(self) -> bool:
        """The VM has its groups."""
        return bool(self._top)

    def enter(self, name: str, pid: int, limits: Limits) -> None:
        """Make the group of the VM ``name`` and move a process there, which has one thread.

        The limits for all its threads hold from here on. Raises ``OSError`` or ``IsolationError``.
        """
        if not self._groups.base:
            return
        if self.has_scope:
            self._start_scope(name, pid)
        else:
            self._make_top(name)
        if self._groups.is_unified:
            self._system.make_directory(self._inner)
        self._enter_all(pid)
        if self._groups.is_unified:
            self._enable(self._top)
        self.limit(_of(_WHOLE, limits))

    def join(self, pid: int) -> None:
        """Move a helper, which has one thread, to where QEMU is. Raises ``OSError``."""
        if self._top:
            self._enter_all(pid)

    def _enter_all(self, pid: int) -> None:
        for group in (self._inner, *self._beside):
            self._system.write(f"{group}/cgroup.procs", str(pid))

    def place(
        self,
        planned: Mapping[str, CpuSet],
        tasks: Callable[[], Mapping[str, str]],
        limits: Limits,
    ) -> None:
        """Give each role its group with its CPUs and limits, and move its threads there.

        ``planned`` is the CPUs by group (``vcpu0``), ``tasks`` tells every thread of QEMU with its
        group; it is asked until there is none that was not moved. Those of helpers go where the
        emulator's are. Raises ``OSError``.
        """
        if not self._top:
            return
        for group in planned:
            self._make_inner(group)
        if self._groups.is_unified:
            self._enable(self._inner)
        self.limit(_of(planned, limits))
        self.put(planned)
        self.move(tasks)

    def put(self, planned: Mapping[str, CpuSet]) -> None:
        """Give groups of threads these CPUs. Raises ``OSError``."""
        for group, cpus in planned.items() if self._top else ():
            self._system.write(f"{self._inner}/{group}/cpuset.cpus", str(cpus))

    def move(self, tasks: Callable[[], Mapping[str, str]]) -> None:
        """Move threads to their groups, until there is none that was not. Raises ``OSError``."""
        if not self._top:
            return
        file = "cgroup.threads" if self._groups.is_unified else "tasks"
        seen: set[str] = set()

        def all_tasks() -> dict[str, str]:
            beside = self._system.read(f"{self._inner}/{file}").split()
            return {**dict.fromkeys(beside, EMULATOR), **tasks()}

        while fresh := {tid: group for tid, group in all_tasks().items() if tid not in seen}:
            for tid, group in fresh.items():
                try:
                    for above in (self._inner, *self._of_threads):
                        self._system.write(f"{above}/{group}/{file}", tid)
                except ProcessLookupError:  # a helper thread that has ended
                    continue
            seen |= fresh.keys()

    def limit(self, limits: Limits) -> None:
        """Write what has to stand in the VM's groups. Raises ``OSError`` or ``IsolationError``."""
        if not self._groups.is_unified:
            self._limit_each(limits)
            return
        for place, value in limits.items():
            if place.group == OUTER and self.has_scope:
                self._set_property(PROPERTIES[place.file], int(value.rpartition(" ")[2]))
                continue
            group = self._path_of(place.group)
            for above in self._above(group):
                if place.controller not in self._system.read(f"{above}/cgroup.controllers").split():
                    raise IsolationError(f"/{above}: it has no {place.controller} controller")
                self._enable(above, place.controller)
            self._system.write(f"{group}/{place.file}", value)

    def _limit_each(self, limits: Limits) -> None:
        """Write what has to stand in the groups of v1.

        A value that the kernel refuses beside the one before is taken after all else: memory alone
        above memory with swap, or a thread's share of a CPU above the VM's.
        """
        again = {}
        for place, value in limits.items():
            above = f"{UNIFIED}/{place.controller}/{self._name}"
            if above not in self._beside:
                raise IsolationError(f"/{above}: found no {place.controller} controller of v1")
            path = above if place.group in _WHOLE else f"{above}/{place.group}"
            if not self._system.has(f"{path}/{place.file}"):
                raise IsolationError(f"/{path}/{place.file}: this kernel has no such limit")
            try:
                self._system.write(f"{path}/{place.file}", value)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                again[f"{path}/{place.file}"] = value
        for path, value in again.items():
            self._system.write(path, value)

    def _above(self, group: str) -> list[str]:
        """Return the groups from which a group gets its controllers, the outermost first.

        The groups above a scope are systemd's.
        """
        first = self._top if self.has_scope else self._groups.base
        parts = group.removeprefix(first).split("/")[1:]
        return [first + "".join(f"/{part}" for part in parts[:at]) for at in range(len(parts))]

    def _path_of(self, group: str) -> str:
        if group in _WHOLE:
            return self._top if group == OUTER else self._inner
        return f"{self._inner}/{group}"

    def _set_property(self, name: str, value: int) -> None:
        systemd = self._system.systemd()
        if systemd is None:
            raise IsolationError("systemd has gone")
        with systemd:
            systemd.set_number(self._top.rpartition("/")[2], name, value)

    def remove(self) -> None:
        """Remove the groups of a VM whose QEMU has ended; what still holds a task stays.

        systemd removes a scope that is empty. Raises ``OSError``.
        """
        if not self._top:
            return
        if not self.has_scope:
            for group in (self._top, *self._beside):
                remove_groups(self._system, group)
            sweep(self._system)
        else:
            remove_groups(self._system, self._inner)
            self._wait(lambda: not self._system.has(f"{self._top}/cgroup.procs"))
        self._top = ""
        self._beside = []

    @property
    def _name(self) -> str:
        """The VM's group, from the hierarchy's root on."""
        return self._top.removeprefix(f"{self._groups.base}/")

    @property
    def _of_threads(self) -> list[str]:
        """Groups of v1, beside that of the CPU sets, that have groups of threads in them."""
        return [group for group in self._beside if group.startswith(f"{UNIFIED}/cpu/")]

    @property
    def _inner(self) -> str:
        """The directory of the threads' groups."""
        return f"{self._top}/libvirt" if self._groups.is_unified else self._top

    def _start_scope(self, name: str, pid: int) -> None:
        unit = f"machine-{LAUNCHED}{escaped(name)}.scope"
        systemd = self._system.systemd()
        if systemd is None:
            raise IsolationError("systemd has gone")
        mine = (self._groups.of_process(self._system, pid) or "").rpartition("/")[2]
        with systemd:
            systemd.start_scope(
                unit,
                pid,
                parent=SLICE,
                about=f"Virtual machine {name}",
                before=mine if mine.endswith((".service", ".scope")) else "",
            )
        path = f"{SLICE}/{unit}"
        if not self._wait(lambda: self._groups.of_process(self._system, pid) == path):
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
        self._beside = [f"{base}/{self._name}" for base in limiting(self._system)]
        for group in self._beside:
            self._system.make_directory(group.rpartition("/")[0])
            self._system.make_directory(group)

    def _make(self, path: str) -> None:
        """Make a group that may hold tasks: a v1 one needs CPUs and memory nodes for that."""
        self._system.make_directory(path)
        if self._groups.is_unified:
            return
        above = path.rpartition("/")[0]
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not self._system.read(f"{path}/{file}"):
                self._system.write(f"{path}/{file}", self._system.read(f"{above}/{file}"))

    def _make_inner(self, group: str) -> None:
        path = f"{self._inner}/{group}"
        self._make(path)
        for above in self._of_threads:
            self._system.make_directory(f"{above}/{group}")
        if self._groups.is_unified:
            self._system.write(f"{path}/cgroup.type", "threaded")

    def _enable(self, path: str, *more: str) -> None:
        """Let the children of a group have CPU sets, and what else is asked for."""
        file = f"{path}/cgroup.subtree_control"
        there = self._system.read(file).split()
        for controller in dict.fromkeys(("cpuset", *more)):
            if controller not in there:
                self._system.write(file, f"+{controller}")

    def _wait(self, is_done: Callable[[], bool]) -> bool:
        until = self._system.now() + SECONDS
        while not is_done():
            if self._system.now() >= until:
                return False
            self._system.sleep(_POLL)
        return True


def _of(groups: Container[str], limits: Limits) -> Limits:
    """Return the limits of some groups."""
    return {place: value for place, value in limits.items() if place.group in groups}


def group_of(role: str) -> str:
    """Return the group of a role: ``vcpu0`` for ``vCPU 0``."""
    return role.replace(" ", "").lower()


def escaped(name: str) -> str:
    """Return a VM's name as part of a unit's: no ``+`` and no ``~`` (systemd.unit(5))."""
    return name.replace("+", "\\x2b").replace("~", "\\x7e")
