"""The control groups of one VM: where its threads belong, and what each of them may have."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvm_launch.host.cgroup import GroupTree, group_of
from kvm_launch.host.isolation import may_isolate, translated
from kvm_launch.host.limits import (
    Limits,
    differences,
    legacy_limits_of,
    limits_of,
    problems,
)
from kvmhooks.errors import IsolationError, SpecError, words_of
from kvmhooks.isolate.system.system import System
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.threads import EMULATOR, planned_cpus
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import CpuSet


class VmGroups:
    """The groups of a VM, which has them where its limits, or who starts it, need any."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._tree = GroupTree(system)
        self._name = ""
        self._planned: dict[str, CpuSet] = {}
        self._limits: Limits = {}
        self._unlimited = ""

    @property
    def unlimited(self) -> str:
        """The reason why nothing is limited though ``[tuning]`` asks for it."""
        return self._unlimited

    @property
    def can_be_apart(self) -> bool:
        """A VM can have a scope of its own beside that of who starts it."""
        return self._tree.has_scope and may_isolate(self._system)

    def plan(self, name: str, decided: Plan) -> None:
        """Take from a plan what they will have. Raises ``SpecError`` for what groups cannot do."""
        self._name = name
        self._planned = _planned(decided)
        self._limits, self._unlimited = self._limits_of(decided.spec)

    def enter(self, pid: int, *, is_due: bool) -> None:
        """Make the VM's group for a process with one thread, if limits need it or it ``is_due``.

        Raises ``OSError`` or ``IsolationError``.
        """
        if self._limits or is_due:
            self._tree.enter(self._name, pid, self._limits)

    def join(self, pids: Sequence[int]) -> None:
        """Put the VM's helpers beside its QEMU. Raises ``IsolationError``."""
        with translated(self._name):
            for pid in pids:
                self._tree.join(pid)

    def place(self, pid: int, threads: Mapping[str, int]) -> None:
        """Give QEMU's threads, told by their roles, groups of their own. Raises ``OSError``."""
        self._tree.place(self._planned, self._tasks(pid, threads), self._limits)

    def gather(self, pid: int, threads: Mapping[str, int]) -> None:
        """Put new threads where they belong. Raises ``OSError``."""
        self._tree.move(self._tasks(pid, threads))

    def move(self, decided: Plan, pid: int, threads: Mapping[str, int]) -> None:
        """Have the groups of threads on the CPUs of another plan. Raises ``OSError``."""
        # KVM starts a thread of its own from the first vCPU that runs, and in its group.
        self.gather(pid, threads)
        self._tree.put(_planned(decided))

    def moved(self, decided: Plan) -> None:
        """Know that the VM is where another plan has it."""
        self._planned = _planned(decided)

    def limit(self, spec: VmSpec) -> list[str]:
        """Have ``[tuning]`` of ``spec`` in the groups of a VM that runs; what was written.

        Raises ``SpecError`` for what groups cannot do, ``IsolationError`` where the VM has none.
        """
        after, unlimited = self._limits_of(spec)
        self._unlimited = unlimited or self._unlimited
        if self._unlimited or not self._tree.is_made:
            why = self._unlimited or "it was started without [tuning] and isolation.exclusive"
            raise IsolationError(f"it has no control group of its own: {why}")
        changes = differences(self._limits, after)
        with translated(self._name):
            self._tree.limit(changes)
        self._limits = after
        return [f"{place.group} {place.file}: {value}" for place, value in changes.items()]

    def remove(self) -> list[str]:
        """Remove them; return what could not be done."""
        try:
            self._tree.remove()
        except OSError as error:
            return [words_of(error)]
        return []

    def _tasks(self, pid: int, threads: Mapping[str, int]) -> Callable[[], dict[str, str]]:
        """Return what tells the group of each of QEMU's threads; a role without one is the
        emulator's.
        """
        found = {str(tid): group_of(role) for role, tid in threads.items()}
        groups = {tid: group for tid, group in found.items() if group in self._planned}

        def tasks() -> dict[str, str]:
            return {
                tid: groups.get(tid, EMULATOR) for tid in self._system.names(f"proc/{pid}/task")
            }

        return tasks

    def _limits_of(self, spec: VmSpec) -> tuple[Limits, str]:
        """Return what ``[tuning]`` asks of groups, or why nothing is limited though it asks for it.

        Raises ``SpecError`` for what groups cannot do.
        """
        is_unified = self._tree.is_unified
        found = tuple(problems(spec.tuning, is_unified=is_unified))
        if found:
            raise SpecError(spec.source, found)
        of = limits_of if is_unified else legacy_limits_of
        limits = of(spec.tuning, self._planned, _number_of)
        if not limits:
            return {}, ""
        if not may_isolate(self._system):
            return {}, "only root can limit what a VM gets"
        return (limits, "") if self._tree.can_limit else ({}, "it takes control groups")


def _planned(decided: Plan) -> dict[str, CpuSet]:
    """Return the CPUs of each group of a VM's threads."""
    return {group_of(role): cpus for role, cpus in planned_cpus(decided).items()}


def _number_of(path: Path) -> str:
    """Return the number of a block device. Raises ``IsolationError`` for what is none."""
    try:
        status = path.stat()
    except OSError as error:
        raise IsolationError(f"tuning.io: {path}: {error.strerror}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise IsolationError(f"tuning.io: {path}: found no block device, expected a disk")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
