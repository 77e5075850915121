"""The CPU sets of everything that is not the VM, or, on newer kernels, the VM's own partitions.

From kernel 6.7 each vCPU's group becomes a remote isolated partition: the kernel then takes its CPU
from everyone else, and gives it back when the group goes (Documentation/admin-guide/
cgroup-v2.rst, ``cpuset.cpus.exclusive`` and ``cpuset.cpus.partition``). Before, the groups beside
the VM are narrowed: through systemd's ``AllowedCPUs`` where it owns them (it would write its own
value again at a ``daemon-reload``), else in their files.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.groups import PARTITIONS_SINCE, Groups
from kvmhooks.isolate.knob import CGROUPS, Knob
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import View
    from kvmhooks.isolate.state import Held, Record

_UNITS: Final = (".slice", ".scope", ".service")
_TASKLESS: Final = (".mount", ".swap")
"""Units of systemd whose groups hold no task: they need no narrowing."""

_DROP_INS: Final = ("run/systemd/system.control", "run/systemd/transient")
"""Where systemd puts a runtime property, of a unit with a file and of a transient one
(``unit_drop_in_dir()``, src/core/unit.c); the latter goes with its unit."""

_DROP_IN: Final = "50-AllowedCPUs.conf"

# The order among the groups: what makes room comes before what needs it.
_MEMBER: Final = CGROUPS + 50
_GROW: Final = CGROUPS + 100
_PARTITION: Final = CGROUPS + 300
_WITHDRAW: Final = CGROUPS + 400
_NARROW: Final = CGROUPS + 600
_DISABLE: Final = CGROUPS + 800


def has_partitions(view: View, groups: Groups) -> bool:
    """Whether this kernel can isolate a VM's own groups."""
    return groups.is_unified and bool(groups.base) and view.kernel >= PARTITIONS_SINCE


def knobs(door: Door, view: View, groups: Groups, records: Mapping[str, Record]) -> Iterator[Knob]:
    """The groups to narrow, and the VMs' own."""
    if not groups.base:
        return
    takers = [
        one
        for one in view.held
        if one.claim.setting("isolation.tasks") == "yes"
        and (one.fallback or not has_partitions(view, groups))
    ]
    taken = union(one.claim.exclusive for one in takers)
    if taken or any(key.startswith("cpus/") for key in records):
        if groups.is_unified:
            yield from _unified(door, view, groups, takers)
        else:
            yield from _legacy(door, view, groups, taken)
    if has_partitions(view, groups):
        yield from _partitions(door, groups, records)


def _unified(door: Door, view: View, groups: Groups, takers: list[Held]) -> Iterator[Knob]:
    """The groups at the top, and below those that have VMs the ones beside them."""
    taken = union(one.claim.exclusive for one in takers)
    has_systemd = door.has("run/systemd/system")
    above = groups.ancestors()
    todo = [""]
    while todo:
        path = todo.pop()
        if not has_systemd:
            yield _Controller(groups.base, path, taken)
        for name in door.directories(f"{groups.base}/{path}".rstrip("/")):
            child = f"{path}/{name}".lstrip("/")
            if has_systemd and name.endswith(_TASKLESS):
                continue
            if child in groups.scopes:
                own = groups.scopes[child].claim.exclusive
                forbidden = union(
                    one.claim.exclusive for one in takers if one is not groups.scopes[child]
                )
                needs = _inner_cpus(door, f"{groups.base}/{child}", own) & forbidden
                forbidden = forbidden if needs else CpuSet()
            elif child in above:
                todo.append(child)
                continue
            else:
                forbidden = taken
            kind = _Unit if has_systemd and name.endswith(_UNITS) else _Cpus
            yield kind(groups, child, forbidden, view)


def _inner_cpus(door: Door, path: str, own: CpuSet) -> CpuSet:
    """Where a VM's emulator and I/O threads may run besides its own CPUs, by their own sets."""
    found = CpuSet()
    for name in door.directories(f"{path}/libvirt"):
        try:
            text = door.read(f"{path}/libvirt/{name}/cpuset.cpus")
        except OSError:  # no CPU set there: it runs wherever the scope may
            text = ""
        found |= CpuSet.parse(text) if text else CpuSet.from_mask((1 << 4_096) - 1)
    return found - own


def _legacy(
    door: Door, view: View, groups: Groups, taken: CpuSet, path: str = ""
) -> Iterator[Knob]:
    """Every group of a v1 hierarchy: a group's CPUs must be among those of the one above.

    A VM keeps its own CPUs, and its emulator leaves those of the others.
    """
    above = groups.ancestors()
    for name in door.directories(f"{groups.base}/{path}".rstrip("/")):
        child = f"{path}/{name}".lstrip("/")
        owner = groups.scopes.get(child)
        forbidden = taken if owner is None else taken - owner.claim.exclusive
        if child not in above:
            yield _Cpus(groups, child, forbidden, view)
        yield from _legacy(door, view, groups, forbidden, child)


def _partitions(door: Door, groups: Groups, records: Mapping[str, Record]) -> Iterator[Knob]:
    """The exclusive sets from the top down to each vCPU's group, and the partition there."""
    wanted: dict[str, CpuSet] = {}
    vcpus: dict[str, CpuSet] = {}
    for scope, one in groups.scopes.items():
        if one.fallback or one.claim.setting("isolation.tasks") != "yes":
            continue
        for group, cpus in _vcpu_groups(door, groups.base, scope):
            cpu = cpus & one.claim.exclusive
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
        yield _Partition(groups.base, group, is_wanted=bool(cpus))


def _vcpu_groups(door: Door, base: str, scope: str) -> Iterator[tuple[str, CpuSet]]:
    for name in door.directories(f"{base}/{scope}/libvirt"):
        if name.startswith("vcpu"):
            group = f"{scope}/libvirt/{name}"
            try:
                yield group, CpuSet.parse(door.read(f"{base}/{group}/cpuset.cpus"))
            except OSError:  # libvirt runs without the cpuset controller: the fallback narrows
                continue


class _Cpus(Knob):
    """``cpuset.cpus`` of one group, in its file."""

    __slots__ = ("depth", "forbidden", "path", "possible")

    def __init__(self, groups: Groups, group: str, forbidden: CpuSet, view: View) -> None:
        super().__init__(f"cpus/{group}", CGROUPS)
        self.path = f"{groups.base}/{group}"
        self.forbidden = forbidden
        self.possible = view.possible if groups.is_unified else CpuSet()
        """The mask that is as good as none; a v1 group without CPUs holds no task."""
        self.depth = group.count("/")

    def read(self, door: Door) -> str:
        """Empty for all CPUs, and where the controller is not enabled: the same for its tasks.

        A set with tasks cannot be emptied again (ENOSPC); the full mask stands for none.
        """
        try:
            cpus = CpuSet.parse(door.read(f"{self.path}/cpuset.cpus"))
        except FileNotFoundError:
            door.read(f"{self.path}/cgroup.procs")  # the group itself is gone: so is the knob
            return ""
        return "" if cpus == self.possible else str(cpus)

    def write(self, door: Door, value: str) -> None:
        door.write(f"{self.path}/cpuset.cpus", value or str(self.possible))

    def target(self, original: str, view: View) -> str:
        allowed = CpuSet.parse(original) or self.possible
        if allowed.isdisjoint(self.forbidden):
            return original
        return str(allowed - self.forbidden or view.online - self.forbidden)

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        """First what widens, from the top; then what narrows, from the bottom."""
        now, then = (CpuSet.parse(text) or self.possible for text in (current, target))
        if now == then:
            return []
        if now < then:
            return [(_GROW + self.depth, target)]
        if then < now:
            return [(_NARROW - self.depth, target)]
        both = "" if now | then == self.possible else str(now | then)
        return [(_GROW + self.depth, both), (_NARROW - self.depth, target)]


class _Unit(_Cpus):
    """The same through systemd, which keeps its own idea of it in a drop-in."""

    __slots__ = ("unit",)

    def __init__(self, groups: Groups, group: str, forbidden: CpuSet, view: View) -> None:
        super().__init__(groups, group, forbidden, view)
        self.unit = group.rsplit("/", 1)[-1]

    def write(self, door: Door, value: str) -> None:
        systemd = door.systemd()
        if systemd is None:
            raise IsolationError(f"{self.unit}: systemd has gone")
        with systemd:
            systemd.set_cpus(self.unit, CpuSet.parse(value) or self.possible)

    def note(self, door: Door) -> str:
        """Whether somebody else has set the unit's CPUs until the next boot."""
        return "theirs" if self._drop_ins(door) else ""

    def finish(self, door: Door, record: Record) -> bool:
        """Have systemd forget our set, and remove our drop-in, and nothing else.

        The live set has the full mask already: an empty ``AllowedCPUs=`` would not widen it
        (systemd#43846). ``systemctl revert`` would remove the administrator's own drop-ins as well.
        """
        if record.note == "theirs":
            return False
        systemd = None if record.original else door.systemd()
        if systemd is not None:
            with systemd:
                systemd.set_cpus(self.unit, CpuSet())
        for directory in self._drop_ins(door):
            if _is_ours(door.read(f"{directory}/{_DROP_IN}")):
                door.unlink(f"{directory}/{_DROP_IN}")
                door.remove_empty(directory)
        return True

    def _drop_ins(self, door: Door) -> list[str]:
        directories = (f"{above}/{self.unit}.d" for above in _DROP_INS)
        return [one for one in directories if door.has(f"{one}/{_DROP_IN}")]


def _is_ours(text: str) -> bool:
    """Whether a drop-in says nothing but ``AllowedCPUs`` in one section.

    systemd writes an empty assignment before the value, which resets what other files said
    (``bus_cgroup_set_cpuset()``, src/core/dbus-cgroup.c).
    """
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    settings = lines[1:]
    return (
        bool(settings)
        and lines[0].startswith("[")
        and all(line.startswith("AllowedCPUs=") for line in settings)
    )


class _Controller(Knob):
    """Whether a group's children have CPU sets; enabled from the top down, or EINVAL."""

    __slots__ = ("path", "taken")

    def __init__(self, base: str, group: str, taken: CpuSet) -> None:
        super().__init__(f"cpus-controller/{group}", CGROUPS + group.count("/") + bool(group))
        self.path = f"{base}/{group}".rstrip("/") + "/cgroup.subtree_control"
        self.taken = taken

    def read(self, door: Door) -> str:
        return "on" if "cpuset" in door.read(self.path).split() else "off"

    def write(self, door: Door, value: str) -> None:
        door.write(self.path, "+cpuset" if value == "on" else "-cpuset")

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return "on" if self.taken else original

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        if current == target:
            return []
        return [(self.order if target == "on" else _DISABLE - self.order + CGROUPS, target)]


class _Exclusive(Knob):
    """``cpuset.cpus.exclusive``: what a group may hand down to a partition below it."""

    __slots__ = ("cpus", "depth", "path")

    def __init__(self, base: str, group: str, cpus: CpuSet) -> None:
        super().__init__(f"exclusive/{group}", CGROUPS)
        self.path = f"{base}/{group}/cpuset.cpus.exclusive"
        self.cpus = cpus
        self.depth = group.count("/")

    def read(self, door: Door) -> str:
        return str(CpuSet.parse(door.read(self.path)))

    def write(self, door: Door, value: str) -> None:
        door.write(self.path, value)

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return str(CpuSet.parse(original) | self.cpus)

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        """What grows goes down from the top, what shrinks up from the bottom."""
        now, then = CpuSet.parse(current), CpuSet.parse(target)
        if now == then:
            return []
        if now < then:
            return [(_GROW + self.depth, target)]
        if then < now:
            return [(_WITHDRAW - self.depth, target)]
        return [(_GROW + self.depth, str(now | then)), (_WITHDRAW - self.depth, target)]


class _Partition(Knob):
    """``cpuset.cpus.partition``: the write succeeds and the file then says why it is invalid."""

    __slots__ = ("is_wanted", "path")

    def __init__(self, base: str, group: str, *, is_wanted: bool) -> None:
        super().__init__(f"partition/{group}", _PARTITION)
        self.path = f"{base}/{group}/cpuset.cpus.partition"
        self.is_wanted = is_wanted

    def read(self, door: Door) -> str:
        return door.read(self.path)

    def write(self, door: Door, value: str) -> None:
        door.write(self.path, value)

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return "isolated" if self.is_wanted else original

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        if current == target:
            return []
        return [(_PARTITION if target == "isolated" else _MEMBER, target)]
