"""The groups beside the VMs that own CPUs: which there are, and whose they are.

Only the topmost are of interest, since a group's tasks may use no more than the group above it:
those at the root, and those beside VMs. systemd names the groups that it manages after its units,
and leaves others to their makers (https://systemd.io/CGROUP_DELEGATION): docker and the kubelet
with ``cgroupfs``, or somebody with ``mkdir``.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, ValueFormatError
from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.isolate.system.process_stat import name_of
from kvmhooks.isolate.vm.cgroups import LEGACY, MACHINES, Groups, pid_of
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.system.system import System

UNITS: Final = (".slice", ".scope", ".service")

TASKLESS: Final = (".mount", ".swap", ".socket")
"""Units of systemd whose groups hold no task of their own: they need no narrowing."""

SYSTEMD: Final = "run/systemd/system"
"""There where systemd runs (``sd_booted(3)``)."""

_LIBVIRT: Final = "run/libvirt/qemu"
_STARTING: Final = "reason='starting up'"
"""libvirt's word on a VM until the hook's ``started`` (``qemuProcessInit()`` sets it, and
``qemuProcessFinishStartup()`` saves another just before, src/qemu/qemu_process.c).
"""


def levels(system: System, groups: Groups) -> Iterator[tuple[str, list[str]]]:
    """Yield each group that may have others beside a VM, from the root down, with its children."""
    above = groups.ancestors()
    todo = [""]
    while todo:
        path = todo.pop()
        names = system.directories(f"{groups.base}/{path}".rstrip("/"))
        children = [f"{path}/{name}".lstrip("/") for name in names]
        yield path, children
        todo += [child for child in children if child in above and child not in groups.scopes]


def strangers(system: System, groups: Groups) -> list[str]:
    """Return the groups that are beside the VMs of ours, and run something."""
    left = {*groups.scopes, *groups.ancestors()}
    return [
        child
        for _, children in levels(system, groups)
        for child in children
        if child not in left and not needs_none(system, child)
    ]


def needs_none(system: System, path: str) -> bool:
    """Return whether systemd has a group for a unit that runs nothing."""
    return path.endswith(TASKLESS) and system.has(SYSTEMD)


def is_units(system: System, path: str) -> bool:
    """Return whether a group is that of one of systemd's units."""
    return path.endswith(UNITS) and system.has(SYSTEMD)


def is_raw(system: System, path: str) -> bool:
    """Return whether a group is another manager's: beside systemd's, named after none of its units.

    libvirt's own, where machined makes none for it, is not: its VMs are narrowed as in scopes. A
    hierarchy of v1 has no CPU sets of systemd's, so that none there is.
    """
    if path.endswith((*UNITS, *TASKLESS)) or path.split("/", 1)[0] == MACHINES[1]:
        return False
    return system.has(SYSTEMD) and not system.has(f"{LEGACY}/cpuset.cpus")


def is_undecided(system: System, groups: Groups, path: str, held: Iterable[Held]) -> bool:
    """Return whether a VM's group is there, and not yet known whose it is: nobody may narrow it.

    systemd makes a scope before it moves QEMU there. Narrowed then, that of a VM which is to have
    CPUs alone would not have them, and libvirt could not pin its vCPUs. Its members are read last,
    so that a VM of ours which was not found a moment ago is not taken for another's.
    """
    if path.split("/", 1)[0] not in MACHINES or path.endswith((".service", ".slice")):
        return False
    ours = {pid_of(system, vm) for vm in held}
    pids = {*_processes(system, groups, path), *_processes(system, groups, f"{path}/libvirt")}
    if pids:
        return not ours.isdisjoint(pids)
    try:
        return "populated 1" not in system.lines(f"{groups.base}/{path}/cgroup.events")
    except OSError:  # v1 has none, and its groups take their set from above
        return groups.is_unified


def _processes(system: System, groups: Groups, path: str) -> list[int]:
    try:
        lines = system.lines(f"{groups.base}/{path}/cgroup.procs")
    except OSError:  # it has gone, or holds threads of another group's processes
        return []
    return [int(line) for line in lines if line.isdecimal()]


def members(system: System, groups: Groups, path: str) -> Iterator[int]:
    """Yield the processes in a group and below it, however deep users have made theirs."""
    todo = [path]
    while todo:
        path = todo.pop()
        yield from _processes(system, groups, path)
        try:
            names = system.directories(f"{groups.base}/{path}")
        except OSError:  # it has gone, or its path is longer than the kernel takes (ENAMETOOLONG)
            continue
        todo += [f"{path}/{name}" for name in names]


def starting(system: System, taken: CpuSet) -> dict[int, CpuSet]:
    """Return the taken CPUs that VMs need which libvirt is just starting, by QEMU's process.

    A vCPU whose pins are all taken would be refused them (``sched_setaffinity(2)``, EINVAL) and its
    VM not start, which is none of our business; once it runs, the kernel puts it elsewhere.
    """
    found = {}
    for name in system.names(_LIBVIRT):
        if not name.endswith(".xml"):
            continue
        try:
            text = system.read(f"{_LIBVIRT}/{name}")
            head = text.partition("<domstatus")[2].partition(">")[0]
            if _STARTING in head:
                from kvmhooks.isolate.claims.domain_xml import pins_in  # noqa: PLC0415 -- few are

                pid, pins = pins_in(text.encode("utf-8", "surrogateescape"))
                found[pid] = union(cpus for cpus in pins if cpus <= taken)
        except (OSError, IsolationError, ValueFormatError):  # it has ended, or is being written
            continue
    return found


class Intruder:
    """A group that may use CPUs which are VMs' alone, and what of it does."""

    __slots__ = ("cpus", "path", "processes")

    def __init__(self, path: str, cpus: CpuSet) -> None:
        self.path = path
        self.cpus = cpus
        self.processes: list[tuple[int, str]] = []
        """Those that may run there: number and name."""


def intruders(system: System, held: Iterable[Held]) -> list[Intruder]:
    """Return the groups beside running VMs that may use their CPUs, by what the kernel says."""
    running = [
        vm for vm in held if vm.state == RUNNING and vm.claim.setting("isolation.tasks") == "yes"
    ]
    taken = union(vm.claim.exclusive for vm in running)
    groups = Groups.find(system, running)
    if not taken or not groups.base:
        return []
    found = {}
    for path in strangers(system, groups):
        cpus = (groups.effective(system, path) or CpuSet()) & taken
        if cpus:
            found[path] = Intruder(path, cpus)
    if found:
        _fill(system, groups, found, taken)
    return list(found.values())


def _fill(system: System, groups: Groups, found: dict[str, Intruder], taken: CpuSet) -> None:
    """Say which processes may run on what is taken."""
    for pid in sorted(int(name) for name in system.names("proc") if name.isdecimal()):
        path = groups.of_process(system, pid) or ""
        while path and path not in found:
            path = path.rpartition("/")[0]
        if not path:
            continue
        try:
            may_run = any(
                not system.affinity(int(tid)).isdisjoint(taken)
                for tid in system.names(f"proc/{pid}/task")
            )
            name = name_of(system.read(f"proc/{pid}/stat"))
        except OSError:  # it ended
            continue
        if may_run:
            found[path].processes.append((pid, name))
