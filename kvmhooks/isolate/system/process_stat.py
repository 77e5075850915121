"""A process as ``/proc/PID/stat`` tells it (proc_pid_stat(5)): which one it is, and if it lives."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmhooks.isolate.system.system import System

PARENT, FLAGS, START = 1, 6, 19
"""Places in ``fields_of``: the parent, the ``PF_*`` flags, the start in ticks since boot."""


class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    __slots__ = ("pid", "start")

    def __init__(self, pid: int, start: int) -> None:
        self.pid = pid
        self.start = start

    @classmethod
    def find(cls, system: System, pid: int) -> Process | None:
        """Return the process ``pid`` as it is now, or None."""
        start = start_time(system, pid)
        return None if start is None else cls(pid, start)

    @classmethod
    def from_text(cls, text: str) -> Process | None:
        """Read back what ``to_text`` wrote; None for what is no process."""
        words = text.split()
        if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
            return None
        return cls(int(words[0]), int(words[1]))

    def to_text(self) -> str:
        """Return one line."""
        return f"{self.pid} {self.start}"

    def is_alive(self, system: System) -> bool:
        """Return whether this very process still exists and is no zombie."""
        return start_time(system, self.pid) == self.start


def start_time(system: System, pid: int) -> int | None:
    """Return a process's start in ticks since boot (proc_pid_stat(5)); None if gone or a zombie."""
    try:
        text = system.read(f"proc/{pid}/stat")
    except OSError:
        return None
    fields = fields_of(text)
    return int(fields[START]) if len(fields) > START and fields[0] not in "ZX" else None


def name_of(stat: str) -> str:
    """Return a thread's name in proc_pid_stat(5); it may hold blanks and parentheses."""
    return stat[stat.find("(") + 1 : stat.rfind(")")]


def fields_of(stat: str) -> list[str]:
    """Return the fields after the name there: its state is the first."""
    return stat[stat.rfind(")") + 2 :].split()
