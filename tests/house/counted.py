"""A program that counts what a command does: run in an interpreter of its own, by ``test_counts``.

    python3 counted.py COUNTS PROGRAM WORD...

``PROGRAM`` is ``kvmhooks``, ``kvm-launch``, or the path of the hook's file. It prints what it will;
the counts are written to the file ``COUNTS``. Nothing is imported here that the interpreter has not
loaded before, since the program would find it.
"""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Counts:
    """The numbers of a program, from now on to its end."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.classes = self.files = self.calls = 0
        self.before = set(sys.modules)
        gc.disable()  # or what is collected, when, would count
        sys.addaudithook(self._hear)
        sys.setprofile(self._look)

    def _hear(self, event: str, _arguments: tuple[Any, ...]) -> None:
        self.files += event == "open"

    def _look(
        self,
        _frame: Any,
        event: str,
        function: Any,
        make_class: Any = __build_class__,
        end: Any = os._exit,
    ) -> None:
        if event == "call":
            self.calls += 1
        elif event == "c_call" and function is make_class:
            self.classes += 1
        elif event == "c_call" and function is end:  # as the hook's file ends
            self.write()

    def write(self) -> None:
        """Write them down, and count no more."""
        sys.setprofile(None)
        modules = len(sys.modules.keys() - self.before)
        text = (
            f'{{"modules": {modules}, "classes": {self.classes}, "files": {self.files}, '
            f'"calls": {self.calls}}}'
        )
        with open(self.place, "w", encoding="ascii") as file:
            file.write(text)


def main() -> int:
    """Run the program under count."""
    place, *words = sys.argv[1:]
    sys.argv[:] = words
    counts = Counts(place)
    try:
        return run(words[0])
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        counts.write()


def run(program: str) -> int:
    """Run a program as its entry point does, or as the interpreter runs the hook's file."""
    sys.path[0:0] = [ROOT, f"{ROOT}/launcher"]
    if program == "kvm-launch":
        from kvm_launch.command import main as launch

        return launch()
    if program == "kvmhooks":
        from kvmhooks.cli.main import main as kvmhooks

        return kvmhooks()
    with open(program, encoding="utf-8") as file:
        code = compile(file.read(), program, "exec")
    del sys.path[0:2]
    exec(code, {"__name__": "__main__", "__file__": program})  # noqa: S102 -- made by bundle.py
    return 0


if __name__ == "__main__":
    sys.exit(main())
