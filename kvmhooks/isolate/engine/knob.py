"""A knob: one thing on the host that can be set, and what it should be.

The target is a pure function of the original and of the claims that live. Values are in a
canonical form (a CPU list such as ``0-3``), so that equal means equal for the kernel.
"""

from __future__ import annotations

from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final

    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System

FIRST: Final = 0
"""The order of what must be told before anything moves (irqbalance)."""
ORDINARY: Final = 10
CGROUPS: Final = 2_000
TASKS: Final = 3_000
"""The order of tasks: the kernel may have changed them when the groups were written."""


class View:
    """The host as far as targets depend on it, and the claims that live."""

    __slots__ = (
        "_narrowed",
        "_present",
        "_taken",
        "exclusive",
        "held",
        "kernel",
        "online",
        "possible",
    )

    def __init__(
        self, *, online: CpuSet, possible: CpuSet, held: Sequence[Held], kernel: tuple[int, int]
    ) -> None:
        self.online = online
        self.possible = possible
        self.held = held
        self.kernel = kernel
        self._taken: dict[str, CpuSet] = {}
        self._narrowed: dict[tuple[str, str], str] = {}
        self._present: dict[str, str] = {}
        self.exclusive = union(vm.claim.exclusive for vm in held)
        """The CPUs of all claims."""

    @classmethod
    def read(cls, system: System, held: Iterable[Held]) -> View:
        """Read what is needed of the host. Raises ``OSError``."""
        online = CpuSet.parse(system.read("sys/devices/system/cpu/online"))
        possible = CpuSet.parse(system.read("sys/devices/system/cpu/possible"))
        return cls(
            online=online,
            possible=possible,
            held=sorted(held, key=lambda vm: vm.since),
            kernel=system.kernel(),
        )

    def taken(self, setting: str) -> CpuSet:
        """Return the CPUs of the claims whose ``isolation`` has this setting on."""
        if setting not in self._taken:
            self._taken[setting] = union(
                vm.claim.exclusive for vm in self.held if vm.claim.setting(setting) == "yes"
            )
        return self._taken[setting]

    def without(self, original: CpuSet, taken: CpuSet) -> CpuSet:
        """Return the original without what is taken; if nothing remains, all that is not taken."""
        if original.isdisjoint(taken):
            return original
        return (original - taken) & self.online or self.online - taken

    def present(self, cpus: str) -> str:
        """Return a list without the CPUs that are offline."""
        found = self._present.get(cpus)
        if found is None:
            found = self._present[cpus] = str(CpuSet.parse(cpus) & self.online)
        return found

    def narrowed(self, original: str, setting: str) -> str:
        """Return a list without what is taken: thousands of interrupts share a few masks."""
        found = self._narrowed.get((original, setting))
        if found is None:
            found = str(self.without(CpuSet.parse(original), self.taken(setting)))
            self._narrowed[original, setting] = found
        return found

    def owners(self, cpus: CpuSet, setting: str = "") -> list[Held]:
        """Return the claims that own one of these CPUs, of those with this setting on."""
        return [
            vm
            for vm in self.held
            if not cpus.isdisjoint(vm.claim.exclusive)
            and (not setting or vm.claim.setting(setting) == "yes")
        ]

    def asking(self, setting: str, cpus: CpuSet | None = None) -> list[Held]:
        """Return the claims with the value of ``setting`` that has the say (``requested``)."""
        value = self.requested(setting, cpus)
        return [
            vm
            for vm in (self.held if value else ())
            if vm.claim.setting(setting) == value
            and (cpus is None or not cpus.isdisjoint(vm.claim.exclusive))
        ]

    def requested(self, setting: str, cpus: CpuSet | None = None) -> str:
        """Return the value of ``setting`` in the first claim that has one; empty if none has.

        With ``cpus``, only claims that own one of them have a say.
        """
        for vm in self.held:
            value = vm.claim.setting(setting)
            if value and (cpus is None or not cpus.isdisjoint(vm.claim.exclusive)):
                return value
        return ""


class Knob:
    """One thing that can be set. Subclasses say how; all values are canonical texts."""

    __slots__ = ("key", "order")

    is_volatile = False
    """Another knob's write may change it, so that it is read again after all writes."""

    is_slow = False
    """A write shows only later, because a daemon takes it up when it comes to it."""

    loses_offline = False
    """It is a list from which the kernel leaves out a CPU that is offline."""

    is_written_cut = False
    """A write may leave it without the CPUs that are offline then, also once they are back: kernels
    before 6.2 take them out of a thread's mask (``__sched_setaffinity()``, kernel/sched/core.c).
    """

    unset = "none"
    """The word for an empty value, for people."""

    refusal = ""
    """The reason why it must not be set, where we refuse what the kernel would allow."""

    def __init__(self, key: str, order: int = ORDINARY) -> None:
        self.key = key
        """Its name in the journal, for people as well: ``irq/24``."""
        self.order = order

    @property
    def place(self) -> str:
        """The file that has the value, or what else is set, for people."""
        raise NotImplementedError

    def read(self, system: System) -> str:
        """Return the value there. Raises ``OSError`` or ``ValueFormatError``."""
        raise NotImplementedError

    def look(self, system: System) -> str:
        """Return the value there, where a write may follow."""
        return self.read(system)

    def read_back(self, system: System) -> str:
        """Return the value there, after a write."""
        return self.read(system)

    def write(self, system: System, value: str) -> None:
        """Set it. Raises ``OSError`` or ``IsolationError``."""
        raise NotImplementedError

    def target(self, original: str, view: View) -> str:
        """Return the value that should stand there: pure."""
        raise NotImplementedError

    def askers(self, original: str, view: View, system: System) -> list[Held]:
        """Return the claims because of which the target is not the original."""
        raise NotImplementedError

    def identity(self, system: System) -> str:  # noqa: ARG002 -- most knobs cannot be mistaken
        """Return a mark that a later one with the same key has not."""
        return ""

    def first_original(self, current: str, records: dict[str, Record]) -> str:  # noqa: ARG002
        """Return the original of a knob that is seen for the first time: most inherit nothing."""
        return current

    def is_forced(self, current: str, system: System) -> bool:  # noqa: ARG002 -- as above
        """Return whether the kernel alone made it so, so that it is nobody's wish."""
        return False

    def is_by_kernel(self, current: str, system: System) -> bool:
        """Return whether the kernel may have made it so by itself, after it was as it should be."""
        return self.is_forced(current, system)

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        """Return the writes that lead from ``current`` to ``target``, each with its order."""
        return [(self.order, target)] if current != target else []

    def note(self, system: System) -> str:  # noqa: ARG002 -- as above
        """Return a remark for the record, made before the first write."""
        return ""

    def remark(self, system: System, record: Record) -> str:  # noqa: ARG002 -- as above
        """Return a note for a person, though the value there is the one written."""
        return ""

    def finish(self, system: System, record: Record) -> bool:  # noqa: ARG002 -- as above
        """Clean up after the original stands again; return whether systemd must reload for it.

        Raises like ``write``; it may be called again.
        """
        return False


class CpuListKnob(Knob):
    """A file with a CPU list, from which taken CPUs are left out."""

    __slots__ = ("is_mask", "path", "setting")

    def __init__(
        self,
        key: str,
        path: str,
        *,
        setting: str,
        is_mask: bool = False,
        order: int = ORDINARY,
    ) -> None:
        super().__init__(key, order)
        self.path = path
        self.setting = setting
        self.is_mask = is_mask
        """The file speaks hex masks (``ff,00000003``) instead of lists."""

    @property
    def place(self) -> str:
        return f"/{self.path}"

    def read(self, system: System) -> str:
        return canonical(system.read(self.path), is_mask=self.is_mask)

    def look(self, system: System) -> str:
        return canonical(system.hold(self.path), is_mask=self.is_mask)

    def read_back(self, system: System) -> str:
        return canonical(system.read_back(self.path), is_mask=self.is_mask)

    def write(self, system: System, value: str) -> None:
        system.write(self.path, CpuSet.parse(value).format_mask() if self.is_mask else value)

    def target(self, original: str, view: View) -> str:
        return view.narrowed(original, self.setting)

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners(parsed(original), self.setting)


class PolicyKnob(Knob):
    """A file with one value for the whole host: the first claim that asks decides."""

    __slots__ = ("path", "setting", "spelling")

    def __init__(
        self,
        key: str,
        path: str,
        *,
        setting: str,
        spelling: Mapping[str, str] | None = None,
        order: int = ORDINARY,
    ) -> None:
        super().__init__(key, order)
        self.path = path
        self.setting = setting
        self.spelling = {} if spelling is None else spelling
        """The file's words for the policy's values, where they differ."""

    @property
    def place(self) -> str:
        return f"/{self.path}"

    def read(self, system: System) -> str:
        return chosen(system.read(self.path))

    def write(self, system: System, value: str) -> None:
        system.write(self.path, value)

    def target(self, original: str, view: View) -> str:
        requested = view.requested(self.setting)
        return self.spelling.get(requested, requested) or original

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.asking(self.setting)


_SETS: Final[dict[str, tuple[CpuSet, str]]] = {}
"""The sets that were parsed before: thousands of interrupts share a few masks."""


def parsed(text: str) -> CpuSet:
    """Parse a kernel's list. Raises ``ValueFormatError``."""
    return _parsed(text)[0]


def canonical(text: str, *, is_mask: bool) -> str:
    """Return a kernel's list or mask as a list."""
    return str(CpuSet.parse_mask(text)) if is_mask else _parsed(text)[1]


def _parsed(text: str) -> tuple[CpuSet, str]:
    found = _SETS.get(text)
    if found is None:
        if len(_SETS) >= 1_024:
            _SETS.clear()
        cpus = CpuSet.parse(text)
        found = _SETS[text] = cpus, str(cpus)
    return found


def chosen(text: str) -> str:
    """Return the value of a file that may list its choices: ``always [madvise] never``."""
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end] if 0 <= start < end else text
