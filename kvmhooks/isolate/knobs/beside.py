"""The CPU sets of everything that is beside the VMs, where the kernel has no partitions for them.

They are narrowed through systemd's ``AllowedCPUs`` where it owns them (it would write its own value
again at a ``daemon-reload``), else in their files.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.engine.knob import CGROUPS, FIRST, Knob
from kvmhooks.isolate.vm import neighbours
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System
    from kvmhooks.isolate.vm.cgroups import Groups

GROW: Final = CGROUPS + 100
_WIDEN: Final = FIRST - 100
"""The order of widening, before all else: most of the host waits for CPUs in these groups."""
_NARROW: Final = CGROUPS + 600
_DISABLE: Final = CGROUPS + 800

_DROP_INS: Final = ("run/systemd/system.control", "run/systemd/transient")
"""The places of systemd's runtime properties, of a unit with a file and of a transient one
(``unit_drop_in_dir()``, src/core/unit.c); the latter goes with its unit.
"""

_NO_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"

_DROP_IN: Final = "50-AllowedCPUs.conf"


def unified(
    system: System, view: View, groups: Groups, takers: list[Held], records: Mapping[str, Record]
) -> Iterator[Knob]:
    """Yield the groups at the top, and below those that have VMs the ones beside them."""
    taken = union(vm.claim.exclusive for vm in takers)
    has_systemd = system.has(neighbours.SYSTEMD)
    awaited: dict[int, CpuSet] | None = None
    there = set()
    for path, children in neighbours.levels(system, groups):
        there.update(children)
        if not has_systemd:
            yield _Controller(groups.base, path, taken)
        for child in children:
            if child not in groups.scopes and _is_left(system, view, groups, child, records):
                continue
            if awaited is None and groups.is_machine(child):
                awaited = neighbours.starting(system, taken)
            is_ours = child in groups.scopes
            forbidden = _forbidden(system, groups, child, takers) if is_ours else taken
            forbidden -= _needed(system, groups, child, awaited)
            yield _knob(system, groups, child, forbidden, view)
    if has_systemd:
        yield from _gone(groups, view, taken, there, records)


def _is_left(
    system: System, view: View, groups: Groups, child: str, records: Mapping[str, Record]
) -> bool:
    """Return whether a group has a VM below, needs no narrowing, or may yet be of a VM of ours.

    One that we have narrowed is not.
    """
    if child in groups.ancestors() or neighbours.needs_none(system, child):
        return True
    return f"cpus/{child}" not in records and neighbours.is_undecided(
        system, groups, child, view.held
    )


def _knob(system: System, groups: Groups, child: str, forbidden: CpuSet, view: View) -> _Cpus:
    """Return the group's set, by way of whoever manages it."""
    if neighbours.is_units(system, child):
        return _Unit(groups, child, forbidden, view)
    if not neighbours.is_raw(system, child):
        return _Cpus(groups, child, forbidden, view)
    if not forbidden or administrator.narrows_raw_groups(system):
        return _Raw(groups, child, forbidden, view)
    groups.theirs.add(child)
    return _Raw(groups, child, CpuSet(), view)


def _forbidden(system: System, groups: Groups, scope: str, takers: list[Held]) -> CpuSet:
    """Return the CPUs that a VM of ours has to leave to others."""
    own = groups.scopes[scope].claim.exclusive
    forbidden = union(vm.claim.exclusive for vm in takers if vm is not groups.scopes[scope])
    needs = _inner_cpus(system, f"{groups.base}/{scope}", own) & forbidden
    return forbidden if needs else CpuSet()


def _needed(
    system: System, groups: Groups, child: str, awaited: Mapping[int, CpuSet] | None
) -> CpuSet:
    """Return the CPUs that a VM has to be left until it runs, though they are another's."""
    if not awaited or not groups.is_machine(child):
        return CpuSet()
    return union(
        cpus
        for pid, cpus in awaited.items()
        if f"{groups.of_process(system, pid)}/".startswith(f"{child}/")
    )


def _gone(
    groups: Groups, view: View, taken: CpuSet, there: set[str], records: Mapping[str, Record]
) -> Iterator[Knob]:
    """Yield units on record without a group: systemd keeps what we set until they start again."""
    for key in records:
        kind, _, group = key.partition("/")
        if kind == "cpus" and group.endswith(neighbours.UNITS) and group not in there:
            yield _Ended(groups, group, taken, view)


def _inner_cpus(system: System, path: str, own: CpuSet) -> CpuSet:
    """Return the CPUs of a VM's emulator and I/O threads besides its own, by their own sets."""
    found = CpuSet()
    for name in system.directories(f"{path}/libvirt"):
        try:
            text = system.read(f"{path}/libvirt/{name}/cpuset.cpus")
        except OSError:  # no CPU set there: it runs wherever the scope may
            text = ""
        found |= CpuSet.parse(text) if text else CpuSet.from_mask((1 << 4_096) - 1)
    return found - own


def legacy(
    system: System, view: View, groups: Groups, taken: CpuSet, path: str = ""
) -> Iterator[Knob]:
    """Yield every group of a v1 hierarchy: a group's CPUs must be among those of the one above.

    A VM keeps its own CPUs, and its emulator leaves those of the others.
    """
    above = groups.ancestors()
    for name in system.directories(f"{groups.base}/{path}".rstrip("/")):
        child = f"{path}/{name}".lstrip("/")
        owner = groups.scopes.get(child)
        forbidden = taken if owner is None else taken - owner.claim.exclusive
        if child not in above:
            yield _Cpus(groups, child, forbidden, view)
        yield from legacy(system, view, groups, forbidden, child)


class _Cpus(Knob):
    """``cpuset.cpus`` of one group, in its file."""

    __slots__ = ("depth", "forbidden", "path", "possible")

    unset = "all"

    def __init__(self, groups: Groups, group: str, forbidden: CpuSet, view: View) -> None:
        super().__init__(f"cpus/{group}", CGROUPS)
        self.path = f"{groups.base}/{group}"
        self.forbidden = forbidden
        self.possible = view.possible if groups.is_unified else CpuSet()
        """The mask that is as good as none; a v1 group without CPUs holds no task."""
        self.depth = group.count("/")

    @property
    def place(self) -> str:
        return f"/{self.path}/cpuset.cpus"

    def read(self, system: System) -> str:
        """Return empty for all CPUs, and without the controller enabled: the same for its tasks.

        A set with tasks cannot be emptied again (ENOSPC); the full mask stands for none.
        """
        try:
            cpus = CpuSet.parse(system.read(f"{self.path}/cpuset.cpus"))
        except FileNotFoundError:
            system.read(f"{self.path}/cgroup.procs")  # the group itself is gone: so is the knob
            return ""
        return "" if cpus == self.possible else str(cpus)

    def write(self, system: System, value: str) -> None:
        system.write(f"{self.path}/cpuset.cpus", value or str(self.possible))

    def target(self, original: str, view: View) -> str:
        allowed = CpuSet.parse(original) or self.possible
        if allowed.isdisjoint(self.forbidden):
            return original
        return str(allowed - self.forbidden or view.online - self.forbidden)

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners((CpuSet.parse(original) or self.possible) & self.forbidden)

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        """Return the widening writes from the top, then the narrowing ones from the bottom."""
        now, then = (CpuSet.parse(text) or self.possible for text in (current, target))
        if now == then:
            return []
        if now < then:
            return [(_WIDEN + self.depth, target)]
        if then < now:
            return [(_NARROW - self.depth, target)]
        both = "" if now | then == self.possible else str(now | then)
        return [(_WIDEN + self.depth, both), (_NARROW - self.depth, target)]


class _Unit(_Cpus):
    """The same through systemd, which keeps its own idea of it in a drop-in."""

    __slots__ = ("unit",)

    def __init__(self, groups: Groups, group: str, forbidden: CpuSet, view: View) -> None:
        super().__init__(groups, group, forbidden, view)
        self.unit = group.rsplit("/", 1)[-1]

    def write(self, system: System, value: str) -> None:
        systemd = system.systemd()
        if systemd is None:
            raise IsolationError(f"{self.unit}: systemd has gone")
        with systemd:
            systemd.set_cpus(self.unit, CpuSet.parse(value) or self.possible)

    def note(self, system: System) -> str:
        """Return ``theirs`` if somebody else has set the unit's CPUs until the next boot."""
        return "theirs" if self._drop_ins(system) else ""

    def finish(self, system: System, record: Record) -> bool:
        """Have systemd forget our set, and remove our drop-in, and nothing else.

        The live set has the full mask already: an empty ``AllowedCPUs=`` would not widen it
        (systemd#43846). ``systemctl revert`` would remove the administrator's own drop-ins as well.
        """
        if record.note == "theirs":
            return False
        systemd = None if record.original else system.systemd()
        if systemd is not None:
            with systemd:
                systemd.set_cpus(self.unit, CpuSet())
        self._forget(system)
        return True

    def _forget(self, system: System) -> None:
        for directory in self._drop_ins(system):
            if _is_ours(system.read(f"{directory}/{_DROP_IN}")):
                system.unlink(f"{directory}/{_DROP_IN}")
                system.remove_empty(directory)

    def _drop_ins(self, system: System) -> list[str]:
        directories = (f"{above}/{self.unit}.d" for above in _DROP_INS)
        return [directory for directory in directories if system.has(f"{directory}/{_DROP_IN}")]


class _Ended(_Unit):
    """A unit that has ended: there is what systemd keeps of it, or nothing.

    The drop-in of a transient unit goes with it, and with it the knob.
    """

    __slots__ = ()

    @property
    def place(self) -> str:
        return f"AllowedCPUs of {self.unit}, which has ended (systemctl show {self.unit})"

    def read(self, system: System) -> str:
        """Return the CPUs of its drop-in, if that is ours."""
        for directory in self._drop_ins(system):
            text = system.read(f"{directory}/{_DROP_IN}")
            if _is_ours(text):
                cpus = _cpus_in(text)
                return "" if cpus == self.possible else str(cpus)
        return super().read(system)

    def write(self, system: System, value: str) -> None:
        try:
            super().write(system, value)
        except IsolationError as error:
            if _NO_UNIT not in str(error):
                raise
            self._forget(system)  # its own file has gone, too


def _is_ours(text: str) -> bool:
    """Return whether a drop-in says nothing but ``AllowedCPUs`` in one section.

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


def _cpus_in(text: str) -> CpuSet:
    """Return the last ``AllowedCPUs`` of a drop-in; systemd parts them by blanks or commas.

    Raises ``ValueFormatError``.
    """
    return CpuSet.parse_words(text.strip().rpartition("=")[2])


class _Raw(_Cpus):
    """The group of another manager; if that has set CPUs for it, they stay."""

    __slots__ = ()

    def target(self, original: str, view: View) -> str:
        return original or super().target(original, view)

    def askers(self, original: str, view: View, system: System) -> list[Held]:
        return [] if original else super().askers(original, view, system)


class _Controller(Knob):
    """The CPU sets of a group's children; enabled from the top down, or EINVAL."""

    __slots__ = ("path", "taken")

    def __init__(self, base: str, group: str, taken: CpuSet) -> None:
        super().__init__(f"cpus-controller/{group}", CGROUPS + group.count("/") + bool(group))
        self.path = f"{base}/{group}".rstrip("/") + "/cgroup.subtree_control"
        self.taken = taken

    @property
    def place(self) -> str:
        return f"/{self.path}"

    def read(self, system: System) -> str:
        return "on" if "cpuset" in system.read(self.path).split() else "off"

    def write(self, system: System, value: str) -> None:
        system.write(self.path, "+cpuset" if value == "on" else "-cpuset")

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return "on" if self.taken else original

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners(self.taken)

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        if current == target:
            return []
        return [(self.order if target == "on" else _DISABLE - self.order + CGROUPS, target)]
