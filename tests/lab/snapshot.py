"""The state of a host at one moment, and what is different at another.

The values come from ``probes/state.py``, which says what is watched and where it is read. A
difference is in what was *requested* (a mask that somebody wrote) or in what is *effective* (what
the kernel makes of all requests); restoring a host means that neither differs.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

KTHREADD = 2

TRANSIENT = re.compile(r"\(?udev-worker\)?$|\(sd-[a-z-]+\)?$")
"""Processes that systemd starts and ends by itself at any time."""


@dataclass(frozen=True)
class Fact:
    """One thing that can be read."""

    section: str
    name: str
    kind: str
    value: str

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.section}: {self.name} ({self.kind})"


@dataclass(frozen=True)
class Task:
    """One thread."""

    pid: int
    tid: int
    start: int
    name: str
    is_kernel: bool
    affinity: str
    mems: str
    policy: str
    """The scheduling policy's number and the real-time priority."""

    @property
    def identity(self) -> tuple[int, int, int]:
        """The same for the same thread only: numbers are given away again, with a later start."""
        return self.pid, self.tid, self.start

    @property
    def settings(self) -> dict[str, str]:
        """The properties that can be set."""
        return {"affinity": self.affinity, "mems": self.mems, "policy": self.policy}

    @property
    def title(self) -> str:
        """Its name for people."""
        kind = "kernel thread" if self.is_kernel else f"process {self.pid} thread"
        return f"task: {kind} {self.tid} {self.name} (effective)"


@dataclass(frozen=True)
class Snapshot:
    """All that was read at one moment."""

    facts: tuple[Fact, ...]
    tasks: tuple[Task, ...]
    kernel: str
    """Its release."""

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read what the probe printed."""
        data = json.loads(text)
        facts = tuple(Fact(*row) for row in data["facts"])
        titles = Counter(fact.title for fact in facts)
        if twice := [title for title, count in titles.items() if count > 1]:
            raise LabError(f"two things have one name, so one would hide the other: {twice}")
        return cls(
            facts=facts,
            tasks=tuple(Task(*row) for row in data["tasks"]),
            kernel=data["kernel"],
        )

    @property
    def spread(self) -> str:
        """The CPUs of an interrupt's thread since a partition has come or gone, or nothing.

        Kernels from 6.7 up to 7.0 spread it over all that kthreadd has, until its interrupt moves,
        which without interrupt remapping waits for the next one; a managed one nobody can move.
        """
        major, minor = map(int, re.findall(r"\d+", self.kernel)[:2])
        if not (6, 7) <= (major, minor) < (7, 0):
            return ""
        return next(task.affinity for task in self.tasks if task.tid == KTHREADD)

    @property
    def sections(self) -> set[str]:
        """The kinds of things that were found."""
        return {fact.section for fact in self.facts} | {"task"}

    def value(self, section: str, name: str) -> str:
        """One fact's value."""
        (found,) = [f.value for f in self.facts if (f.section, f.name) == (section, name)]
        return found

    def diff(self, after: Snapshot, *, kind: str | None = None) -> list[str]:
        """Return the changes, one a line; with ``kind`` only what is requested or effective."""
        lines = [*_changed_facts(self, after)]
        if kind is None:
            return [*lines, *_changed_tasks(self, after)]
        lines = [line for line in lines if f" ({kind}): " in line]
        return [*lines, *_changed_tasks(self, after)] if kind == "effective" else lines


def _changed_facts(before: Snapshot, after: Snapshot) -> Iterator[str]:
    old = {fact.title: fact.value for fact in before.facts}
    new = {fact.title: fact.value for fact in after.facts}
    for title in sorted(old.keys() | new.keys()):
        if title not in new:
            yield f"{title}: gone, it was {old[title]!r}"
        elif title not in old:
            yield f"{title}: appeared, it is {new[title]!r}"
        elif old[title] != new[title]:
            yield f"{title}: {old[title]!r} became {new[title]!r}"


def _changed_tasks(before: Snapshot, after: Snapshot) -> Iterator[str]:
    old = {task.identity: task for task in before.tasks}
    new = {task.identity: task for task in after.tasks}
    usual = _settings_by_family(before)
    # When it next runs, an interrupt's thread goes by itself where its interrupt is sent
    # (irq_thread_check_affinity() in kernel/irq/manage.c), however long ago that was settled.
    sent = {
        fact.name.split()[0]: fact.value
        for fact in after.facts
        if (fact.section, fact.kind) == ("irq", "effective")
    }
    for identity, task in sorted(old.items()):
        if identity not in new:
            if _is_process(task):
                yield f"{task.title}: gone"
            continue
        for name, value in task.settings.items():
            now = new[identity].settings[name]
            number = _interrupt(task) if name == "affinity" else ""
            if value != now and not (number and now in {sent.get(number), after.spread}):
                yield f"{task.title} {name}: {value!r} became {now!r}"
    for identity, task in sorted(new.items()):
        if identity in old:
            continue
        if _is_process(task):
            yield f"{task.title}: appeared, {_shown(task)}"
        elif _family(task) in usual and _shown(task) not in usual[_family(task)]:
            # Threads come and go; one that carries what none of its kind had was set by somebody.
            yield f"{task.title}: appeared, {_shown(task)}, unlike any of its kind before"


def _settings_by_family(snapshot: Snapshot) -> dict[str, set[str]]:
    usual = defaultdict(set)
    for task in snapshot.tasks:
        usual[_family(task)].add(_shown(task))
    return usual


def _is_process(task: Task) -> bool:
    return not task.is_kernel and task.pid == task.tid and not TRANSIENT.match(task.name)


def _interrupt(task: Task) -> str:
    """Return the number of the interrupt whose handler this thread runs, or nothing."""
    found = re.match(r"irq/(\d+)-", task.name) if task.is_kernel else None
    return found[1] if found else ""


def _family(task: Task) -> str:
    """The name without what tells one from its like: a kernel thread's numbers, a thread's name."""
    if not task.is_kernel:
        return f"threads of {task.pid}"
    if task.name.startswith("kworker/u"):
        # Its mask is that of its pool (one a node), and pools appear when first used.
        return f"{task.name} {task.tid}"
    return re.sub(r"\d+", "#", task.name.partition("-")[0])


def _shown(task: Task) -> str:
    return ", ".join(f"{name} {value}" for name, value in task.settings.items())
