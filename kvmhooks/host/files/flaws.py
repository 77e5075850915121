"""Flaws of a host's files: each is said once, also when 256 CPUs say the same."""

from __future__ import annotations

import re
from typing import Final

from kvmhooks.values import MAX_CPU, CpuSet

_NUMBERED: Final = re.compile(r"/(cpu|node|index|policy)(\d{1,5})(?=/|$)", re.ASCII)


class Flaws:
    """A collection of (where, what); those that differ in one number only are told as one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[int]] = {}

    def add(self, path: str, what: str) -> None:
        """Note that ``what`` is wrong with the file at ``path``, given from the root."""
        found = _NUMBERED.search(path)
        if found is None or int(found[2]) > MAX_CPU:
            self._found.setdefault((path, "", what), [])
            return
        head, tail = path[: found.start(2)], path[found.end(2) :]
        self._found.setdefault((head, tail, what), []).append(int(found[2]))

    def told(self) -> tuple[str, ...]:
        """Return each as one line: ``/sys/devices/system/cpu/cpu{0-3}/topology/core_id: found …``.

        The words of a captured tree may hold anything, and are escaped as Python does it.
        """
        lines = (
            f"/{head}{_group(numbers)}{tail}: {what}"
            for (head, tail, what), numbers in self._found.items()
        )
        return tuple(sorted(line if line.isprintable() else repr(line)[1:-1] for line in lines))


def _group(numbers: list[int]) -> str:
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    return f"{{{CpuSet(numbers).brief()}}}"
