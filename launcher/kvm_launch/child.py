"""The program with which supervisors of a92f6b5 and b52323f start QEMU, when their VM starts again.

Such a supervisor runs on while this version takes its package's place, and runs the file of this
name. It has the words of ``kvm_launch.spawn.privileges``, but for a92f6b5's of a directory: a path
alone.
"""

from __future__ import annotations

import os
import runpy
import sys


def translated(words: list[str]) -> list[str]:
    """Return the words as this version has them: with who opens a directory, which is root."""
    files = 7  # after GATE, PARENT, PRIVILEGES, IDS, MOVES, LOCKED and a COUNT
    first = files + int(words[files - 1]) + 1
    end = first + int(words[first - 1])
    return [*words[:first], *map(_opened_by, words[first:end]), *words[end:]]


def _opened_by(directory: str) -> str:
    return directory if directory.startswith(("us:", "user:")) else f"us:{directory}"


def main(words: list[str]) -> int:
    """Become what the words say; return only if that does not come to pass."""
    program = os.path.join(os.path.dirname(__file__), "spawn/privileges.py")  # noqa: PTH118, PTH120
    found: int = runpy.run_path(program)["main"](translated(words))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
