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

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.state import Held, Record

FIRST: Final = 0
"""The order of what must be told before anything moves (irqbalance)."""
ORDINARY: Final = 10
CGROUPS: Final = 2_000
TASKS: Final = 3_000
"""The order of tasks: the kernel may have changed them when the groups were written."""


class View:
    """The host as far as targets depend on it, and the claims that live."""

    __slots__ = ("_narrowed", "_taken", "exclusive", "held", "kernel", "online", "possible")

    def __init__(
        self, *, online: CpuSet, possible: CpuSet, held: Sequence[Held], kernel: tuple[int, int]
    ) -> None:
        self.online = online
        self.possible = possible
        self.held = held
        self.kernel = kernel
        self._taken: dict[str, CpuSet] = {}
        self._narrowed: dict[tuple[str, str], str] = {}
        self.exclusive = union(one.claim.exclusive for one in held)
        """The CPUs of all claims."""

    @classmethod
    def read(cls, door: Door, held: Iterable[Held]) -> View:
        """Read what is needed of the host. Raises ``OSError``."""
        online = CpuSet.parse(door.read("sys/devices/system/cpu/online"))
        possible = CpuSet.parse(door.read("sys/devices/system/cpu/possible"))
        return cls(
            online=online,
            possible=possible,
            held=sorted(held, key=lambda one: one.since),
            kernel=door.kernel(),
        )

    def taken(self, setting: str) -> CpuSet:
        """The CPUs of the claims whose ``isolation`` has this setting on."""
        if setting not in self._taken:
            self._taken[setting] = union(
                one.claim.exclusive for one in self.held if one.claim.setting(setting) == "yes"
            )
        return self._taken[setting]

    def without(self, original: CpuSet, taken: CpuSet) -> CpuSet:
        """The original without what is taken; if nothing remains, all that is not taken."""
        if original.isdisjoint(taken):
            return original
        return (original - taken) & self.online or self.online - taken

    def narrowed(self, original: str, setting: str) -> str:
        """A list without what is taken: thousands of interrupts share a few masks."""
        found = self._narrowed.get((original, setting))
        if found is None:
            found = str(self.without(CpuSet.parse(original), self.taken(setting)))
            self._narrowed[original, setting] = found
        return found

    def wish(self, setting: str, cpus: CpuSet | None = None) -> str:
        """What the first claim that says anything of ``setting`` says; empty if none does.

        With ``cpus``, only claims that own one of them have a say.
        """
        for one in self.held:
            said = one.claim.setting(setting)
            if said and (cpus is None or not cpus.isdisjoint(one.claim.exclusive)):
                return said
        return ""


class Knob:
    """One thing that can be set. Subclasses say how; all values are canonical texts."""

    __slots__ = ("key", "order")

    is_volatile = False
    """Whether another knob's write may change it, so that it is read again after all writes."""

    is_slow = False
    """Whether a write shows only later, because a daemon takes it up when it comes to it."""

    refusal = ""
    """Why it must not be set, where we refuse what the kernel would allow."""

    def __init__(self, key: str, order: int = ORDINARY) -> None:
        self.key = key
        """Its name in the journal, for people as well: ``irq/24``."""
        self.order = order

    def read(self, door: Door) -> str:
        """What stands there. Raises ``OSError`` or ``ValueFormatError``."""
        raise NotImplementedError

    def look(self, door: Door) -> str:
        """The same, where a write may follow."""
        return self.read(door)

    def read_back(self, door: Door) -> str:
        """The same, after a write."""
        return self.read(door)

    def write(self, door: Door, value: str) -> None:
        """Set it. Raises ``OSError`` or ``IsolationError``."""
        raise NotImplementedError

    def target(self, original: str, view: View) -> str:
        """What should stand there: pure."""
        raise NotImplementedError

    def identity(self, door: Door) -> str:  # noqa: ARG002 -- most knobs cannot be mistaken
        """What tells it from a later one with the same key."""
        return ""

    def first_original(self, current: str, records: dict[str, Record]) -> str:  # noqa: ARG002
        """The original of a knob that is seen for the first time: most inherit nothing."""
        return current

    def is_forced(self, current: str, door: Door) -> bool:  # noqa: ARG002 -- as above
        """Whether the kernel alone made it so, so that it is nobody's wish."""
        return False

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        """The writes that lead from ``current`` to ``target``, each with its order."""
        return [(self.order, target)] if current != target else []

    def note(self, door: Door) -> str:  # noqa: ARG002 -- as above
        """A remark for the record, made before the first write."""
        return ""

    def remark(self, door: Door, record: Record) -> str:  # noqa: ARG002 -- as above
        """What a person should know though what was written stands there."""
        return ""

    def finish(self, door: Door, record: Record) -> bool:  # noqa: ARG002 -- as above
        """Clean up after the original stands again; whether systemd must reload for it.

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
        """Whether the file speaks hex masks (``ff,00000003``) instead of lists."""

    def read(self, door: Door) -> str:
        return _canonical(door.read(self.path), is_mask=self.is_mask)

    def look(self, door: Door) -> str:
        return _canonical(door.hold(self.path), is_mask=self.is_mask)

    def read_back(self, door: Door) -> str:
        return _canonical(door.read_back(self.path), is_mask=self.is_mask)

    def write(self, door: Door, value: str) -> None:
        door.write(self.path, CpuSet.parse(value).format_mask() if self.is_mask else value)

    def target(self, original: str, view: View) -> str:
        return view.narrowed(original, self.setting)


class WishKnob(Knob):
    """A file with one value for the whole host, set as the first claim that asks wishes."""

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
        """How the file spells what the policy says, where it differs."""

    def read(self, door: Door) -> str:
        return chosen(door.read(self.path))

    def write(self, door: Door, value: str) -> None:
        door.write(self.path, value)

    def target(self, original: str, view: View) -> str:
        wish = view.wish(self.setting)
        return self.spelling.get(wish, wish) or original


_SETS: Final[dict[str, tuple[CpuSet, str]]] = {}
"""What was parsed before: thousands of interrupts share a few masks."""


def parsed(text: str) -> CpuSet:
    """A kernel's list. Raises ``ValueFormatError``."""
    return _parsed(text)[0]


def _canonical(text: str, *, is_mask: bool) -> str:
    """A kernel's list or mask as a list."""
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
    """The value of a file that may list its choices: ``always [madvise] never``."""
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end] if 0 <= start < end else text
