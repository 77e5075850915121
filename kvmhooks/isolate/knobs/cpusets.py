"""The CPU sets of everything that is not the VM, or, on newer kernels, the VM's own partitions.

From kernel 6.7 each vCPU's group becomes a remote isolated partition: the kernel then takes its CPU
from everyone else, and gives it back when the group goes (Documentation/admin-guide/
cgroup-v2.rst, ``cpuset.cpus.exclusive`` and ``cpuset.cpus.partition``). Before, the groups beside
the VM are narrowed: through systemd's ``AllowedCPUs`` where it owns them (it would write its own
value again at a ``daemon-reload``), else in their files.
"""

from __future__ import annotations

from kvmhooks.isolate.engine.knob import CGROUPS, Knob
from kvmhooks.isolate.knobs.beside import GROW, legacy, unified
from kvmhooks.isolate.vm.cgroups import PARTITIONS_SINCE, Groups
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System

# The order among the groups: a write that makes room (GROW) comes before one that needs it, and
# NARROW last.
_MEMBER: Final = CGROUPS + 50
_PARTITION: Final = CGROUPS + 300
_WITHDRAW: Final = CGROUPS + 400


def has_partitions(view: View, groups: Groups) -> bool:
    """Return whether this kernel can isolate a VM's own groups."""
    return groups.is_unified and bool(groups.base) and view.kernel >= PARTITIONS_SINCE


def narrowing(view: View, groups: Groups) -> list[Held]:
    """Return the claims whose CPUs we keep everything else off, since no partition does."""
    return [
        vm
        for vm in view.held
        if vm.claim.setting("isolation.tasks") == "yes"
        and (vm.fallback or not has_partitions(view, groups))
    ]


def knobs(
    system: System, view: View, groups: Groups, records: Mapping[str, Record]
) -> Iterator[Knob]:
    """Yield the groups to narrow, and the VMs' own."""
    if not groups.base:
        return
    takers = narrowing(view, groups)
    taken = union(vm.claim.exclusive for vm in takers)
    if taken or any(key.startswith("cpus/") for key in records):
        if groups.is_unified:
            yield from unified(system, view, groups, takers, records)
        else:
            yield from legacy(system, view, groups, taken)
    if has_partitions(view, groups):
        yield from _partitions(system, groups, records)


def _partitions(system: System, groups: Groups, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield the exclusive sets from the top down to each vCPU's group, and the partition there."""
    wanted: dict[str, CpuSet] = {}
    vcpus: dict[str, CpuSet] = {}
    for scope, vm in groups.scopes.items():
        if vm.fallback or vm.claim.setting("isolation.tasks") != "yes":
            continue
        for group, cpus in _vcpu_groups(system, groups.base, scope):
            cpu = cpus & vm.claim.exclusive
            vcpus[group] = cpu
            parts = group.split("/")
            for depth in range(1, len(parts) + 1):
                above = "/".join(parts[:depth])
                wanted[above] = wanted.get(above, CpuSet()) | cpu
    for key in records:
        kind, _, group = key.partition("/")
        if kind == "exclusive":
            wanted.setdefault(group, CpuSet())
        elif kind == "partition":
            vcpus.setdefault(group, CpuSet())
    for group, cpus in wanted.items():
        yield _Exclusive(groups.base, group, cpus)
    for group, cpus in vcpus.items():
        yield _Partition(groups.base, group, cpus)


def _vcpu_groups(system: System, base: str, scope: str) -> Iterator[tuple[str, CpuSet]]:
    for name in system.directories(f"{base}/{scope}/libvirt"):
        if name.startswith("vcpu"):
            group = f"{scope}/libvirt/{name}"
            try:
                yield group, CpuSet.parse(system.read(f"{base}/{group}/cpuset.cpus"))
            except OSError:  # libvirt runs without the cpuset controller: the fallback narrows
                continue


class _Exclusive(Knob):
    """``cpuset.cpus.exclusive``: the CPUs that a group may hand down to a partition below it."""

    __slots__ = ("cpus", "depth", "path")

    def __init__(self, base: str, group: str, cpus: CpuSet) -> None:
        super().__init__(f"exclusive/{group}", CGROUPS)
        self.path = f"{base}/{group}/cpuset.cpus.exclusive"
        self.cpus = cpus
        self.depth = group.count("/")

    @property
    def place(self) -> str:
        return f"/{self.path}"

    def read(self, system: System) -> str:
        return str(CpuSet.parse(system.read(self.path)))

    def write(self, system: System, value: str) -> None:
        system.write(self.path, value)

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return str(CpuSet.parse(original) | self.cpus)

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners(self.cpus)

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        """Return the writes: sets grow from the top down, and shrink from the bottom up."""
        now, then = CpuSet.parse(current), CpuSet.parse(target)
        if now == then:
            return []
        if now < then:
            return [(GROW + self.depth, target)]
        if then < now:
            return [(_WITHDRAW - self.depth, target)]
        return [(GROW + self.depth, str(now | then)), (_WITHDRAW - self.depth, target)]


class _Partition(Knob):
    """``cpuset.cpus.partition``: the write succeeds and the file then says why it is invalid."""

    __slots__ = ("cpus", "path")

    def __init__(self, base: str, group: str, cpus: CpuSet) -> None:
        super().__init__(f"partition/{group}", _PARTITION)
        self.path = f"{base}/{group}/cpuset.cpus.partition"
        self.cpus = cpus
        """The CPUs that it isolates; none where no VM wants it."""

    @property
    def place(self) -> str:
        return f"/{self.path}"

    def read(self, system: System) -> str:
        return system.read(self.path)

    def write(self, system: System, value: str) -> None:
        system.write(self.path, value)

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return "isolated" if self.cpus else original

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners(self.cpus)

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        if current == target:
            return []
        return [(_PARTITION if target == "isolated" else _MEMBER, target)]
