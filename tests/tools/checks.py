"""`make test`: every check, each with a closing line of how many passed and failed.

With `pytest` and words for it, only that. Where all tests run, the branches of `COVERED` that they
take are measured, and a room below `fail_under` of setup.cfg fails; each counts as one.

mypy runs beside the tests, which wait for QEMUs much of the time; pytest has a worker for each CPU.
A check that is one program (ruff, mypy) counts as one; pytest's are its tests. The last line is
the sum.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
JUNIT = HERE / "build" / "junit.xml"
COVERAGE = ["--cov", "--cov-report=", "--cov-fail-under=0"]
"""Each room is judged by itself, afterwards."""
COVERED = ("isolate", "placement", "spec")
"""The rooms that decide and change the most (``source`` of coverage's part of setup.cfg)."""
PARALLEL = ("--numprocesses=auto", "--dist=worksteal")


class Count(NamedTuple):
    """The numbers of a check's parts that passed, failed and were left out."""

    passed: int
    failed: int
    skipped: int = 0

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"

    @property
    def is_good(self) -> bool:
        """Something was checked and nothing failed."""
        return self.passed > 0 and self.failed == 0


def main() -> int:
    """Run every check, also after one failed; 0 if none did."""
    words = sys.argv[1:]
    if words[:1] == ["pytest"]:
        counts = {"pytest": tests(words[1:])}
    else:
        with ThreadPoolExecutor() as beside:
            types = beside.submit(program, "mypy")
            counts = {
                "ruff": program("ruff", "check", "--quiet"),
                "format": program("ruff", "format", "--check", "--quiet"),
                "pytest": tests(words or COVERAGE),
                "mypy": types.result(),
            }
        if not words:
            counts |= {f"branches of {room}": covered(room) for room in COVERED}
    for name, count in counts.items():
        print(f"{name}: {count}")
    total = Count(*(sum(column) for column in zip(*counts.values(), strict=True)))
    print(total)
    return 0 if all(count.is_good for count in counts.values()) else 1


def covered(room: str) -> Count:
    """Check how many of a room's lines and branches the tests took."""
    return program("coverage", "report", "--skip-covered", f"--include=kvmhooks/{room}/*")


def program(name: str, *arguments: str) -> Count:
    """Run one program of the virtual environment."""
    done = subprocess.run(
        [BIN / name, *arguments],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"== {name} {' '.join(arguments)}\n{done.stdout}", end="", flush=True)
    return Count(int(done.returncode == 0), int(done.returncode != 0))


def tests(words: list[str]) -> Count:
    """Run pytest and count what its JUnit file holds; a run that ended early failed."""
    JUNIT.parent.mkdir(exist_ok=True)
    JUNIT.unlink(missing_ok=True)
    command = [str(BIN / "pytest"), "-q", *PARALLEL, f"--junitxml={JUNIT}", *words]
    print("== pytest", flush=True)
    status = subprocess.run(command, cwd=HERE, check=False).returncode
    if not JUNIT.exists():
        return Count(0, 1)
    suites = ET.parse(JUNIT).getroot().findall("testsuite")  # noqa: S314 -- pytest wrote it
    total, errors, failures, skipped = (
        sum(int(suite.get(key, "0")) for suite in suites)
        for key in ("tests", "errors", "failures", "skipped")
    )
    failed = max(errors + failures, int(status != 0))
    return Count(total - errors - failures - skipped, failed, skipped)


if __name__ == "__main__":
    sys.exit(main())
