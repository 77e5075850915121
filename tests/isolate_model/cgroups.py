"""The kernel's rules for CPU sets, on cgroup v1 and v2, with and without partitions.

Each rule is one that the lab showed (lab.md) or that the kernel's cgroup-v2.rst and
cgroup-v1/cpusets.rst state. The lab's own tests check the model against a real kernel.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Group:
    """One group of the hierarchy."""

    def __init__(self, name: str, parent: Group | None) -> None:
        self.name = name
        self.parent = parent
        self.children: dict[str, Group] = {}
        self.cpus = CpuSet()
        self.exclusive = CpuSet()
        self.partition = "member"
        self.has_controller = False
        """``+cpuset`` stands in its ``cgroup.subtree_control``."""
        self.tasks: set[int] = set()

    @property
    def path(self) -> str:
        """From the hierarchy's root, without a leading slash."""
        return f"{self.parent.path}/{self.name}".lstrip("/") if self.parent else ""

    def walk(self) -> Iterator[Group]:
        """This group and all below it, the upper ones first."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    @property
    def is_populated(self) -> bool:
        """A task is in it or below it."""
        return any(group.tasks for group in self.walk())


class Cgroups:
    """A hierarchy with the cpuset controller."""

    def __init__(self, online: CpuSet, *, is_unified: bool, has_partitions: bool) -> None:
        self.online = online
        self.is_unified = is_unified
        self.has_partitions = has_partitions
        self.refuses_partitions = False
        """Each partition becomes invalid, as when somebody else has made one."""
        self.root = Group("", None)
        self.leader_of: Callable[[int], int] = int
        """The process of a thread."""

    def find(self, path: str) -> Group:
        """The group of this path; ENOENT without it."""
        group = self.root
        for name in path.split("/") if path else ():
            if name not in group.children:
                raise FileNotFoundError(errno.ENOENT, "no such group", path)
            group = group.children[name]
        return group

    def make(self, path: str) -> Group:
        """Make a group and those above it. A v1 group takes its parent's CPUs, as libvirt sets."""
        group = self.root
        for name in path.split("/"):
            if name not in group.children:
                child = Group(name, group)
                if not self.is_unified:
                    child.cpus = self._own(group)
                group.children[name] = child
            group = group.children[name]
        return group

    def remove(self, path: str) -> None:
        """Remove a group with all below it."""
        group = self.find(path)
        assert group.parent is not None
        del group.parent.children[group.name]

    def has_set(self, group: Group) -> bool:
        """Tell whether the CPU set of its tasks is another than the root's."""
        if not self.is_unified:
            return group.parent is not None
        above = group.parent
        while above is not None:
            if above.has_controller:
                return True
            above = above.parent
        return False

    def isolated(self) -> CpuSet:
        """The CPUs of all valid isolated partitions."""
        found = CpuSet()
        for group in self.root.walk():
            if group.partition == "isolated":
                found |= group.exclusive
        return found

    def effective(self, group: Group) -> CpuSet:
        """Return the CPUs that the tasks of a group may use."""
        if not self.is_unified:
            return self._own(group)
        if group.parent is None:
            return self.online - self.isolated()
        if group.partition == "isolated":
            return group.exclusive & self.online
        above = self.effective(group.parent)
        return (group.cpus & above) or above

    def files(self, group: Group) -> list[str]:
        """The names of the files that a group has now."""
        names = ["cgroup.procs"]
        if self.is_unified and group.parent is not None:
            names.append("cgroup.events")
        if not self.is_unified:
            return [*names, "cpuset.cpus", "cpuset.effective_cpus"]
        names += ["cgroup.controllers", "cgroup.subtree_control"]
        if group.parent is None:
            return [*names, "cpuset.cpus.effective"]
        if group.parent.has_controller:
            names += ["cpuset.cpus", "cpuset.cpus.effective", "cpuset.cpus.partition"]
            if self.has_partitions:
                names.append("cpuset.cpus.exclusive")
        return names

    def read(self, group: Group, name: str) -> str:
        """The text of a group's file."""
        if name not in self.files(group):
            raise FileNotFoundError(errno.ENOENT, "no such file", f"{group.path}/{name}")
        texts: dict[str, Callable[[], str]] = {
            "cgroup.procs": lambda: self._processes(group),
            "cgroup.events": lambda: f"populated {int(group.is_populated)}\nfrozen 0",
            "cgroup.controllers": lambda: "cpuset cpu memory",
            "cgroup.subtree_control": lambda: "cpuset cpu" if group.has_controller else "cpu",
            "cpuset.cpus": lambda: str(group.cpus if group.parent else self.online),
            "cpuset.cpus.effective": lambda: str(self.effective(group)),
            "cpuset.effective_cpus": lambda: str(self.effective(group)),
            "cpuset.cpus.partition": lambda: group.partition,
            "cpuset.cpus.exclusive": lambda: str(group.exclusive),
        }
        return texts[name]()

    def _processes(self, group: Group) -> str:
        """libvirt's innermost groups are threaded: the one above them has their processes."""
        if self.is_unified and group.parent is not None and group.parent.name == "libvirt":
            return ""
        inside = group.walk() if group.name == "libvirt" else (group,)
        tasks = {self.leader_of(tid) for member in inside for tid in member.tasks}
        return "\n".join(map(str, sorted(tasks)))

    def write(self, group: Group, name: str, text: str) -> None:
        """Write a group's file, or raise what the kernel would."""
        if name not in self.files(group):
            raise FileNotFoundError(errno.ENOENT, "no such file", f"{group.path}/{name}")
        rules = {
            "cgroup.subtree_control": self._write_control,
            "cpuset.cpus": self._write_cpus,
            "cpuset.cpus.exclusive": self._write_exclusive,
            "cpuset.cpus.partition": self._write_partition,
        }
        if name not in rules:
            raise PermissionError(errno.EACCES, "not writable", name)
        rules[name](group, text)
        self._revalidate()

    def _write_control(self, group: Group, text: str) -> None:
        if text == "+cpuset":
            if group.parent is not None and not group.parent.has_controller:
                raise OSError(errno.ENOENT, "not enabled above", group.path)
            group.has_controller = True
        elif text == "-cpuset":
            if any(child.has_controller for child in group.children.values()):
                raise OSError(errno.EBUSY, "in use below", group.path)
            group.has_controller = False
            for child in group.children.values():
                child.cpus, child.exclusive, child.partition = CpuSet(), CpuSet(), "member"
        else:
            raise OSError(errno.EINVAL, "no such controller", text)

    def _write_cpus(self, group: Group, text: str) -> None:
        cpus = CpuSet.parse(text)
        if group.parent is None:
            raise PermissionError(errno.EACCES, "the root's set is fixed", "")
        if not cpus and group.is_populated:
            raise OSError(errno.ENOSPC, "tasks need a CPU", group.path)
        if not self.is_unified:
            if not cpus <= self._own(group.parent):
                raise OSError(errno.EACCES, "not in the parent's", group.path)
            if not all(child.cpus <= cpus for child in group.children.values()):
                raise OSError(errno.EBUSY, "a child uses more", group.path)
        group.cpus = cpus

    def _write_exclusive(self, group: Group, text: str) -> None:
        cpus = CpuSet.parse(text)
        assert group.parent is not None
        siblings = [child for child in group.parent.children.values() if child is not group]
        if any(not sibling.exclusive.isdisjoint(cpus) for sibling in siblings):
            raise OSError(errno.EINVAL, "a sibling has it", group.path)
        group.exclusive = cpus

    def _write_partition(self, group: Group, text: str) -> None:
        if text not in {"member", "isolated"}:
            raise OSError(errno.EINVAL, "no such state", text)
        group.partition = text

    def _revalidate(self) -> None:
        """A partition whose conditions do not hold says so in its file, and holds nothing."""
        for group in self.root.walk():
            if not group.partition.startswith("isolated"):
                continue
            above = group.parent
            is_valid = bool(group.exclusive)
            while above is not None and above.parent is not None:
                is_valid = is_valid and group.exclusive <= above.exclusive
                above = above.parent
            is_valid = is_valid and self.has_partitions and not self.refuses_partitions
            group.partition = "isolated" if is_valid else "isolated invalid (Parent unusable)"

    def _own(self, group: Group) -> CpuSet:
        return group.cpus if group.parent is not None else self.online
