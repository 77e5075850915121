"""Build the Debian package from what git tracks, and ask lintian: `make deb`.

/usr/bin/python3 tests/tools/build_deb.py [DIR]    the package and its source go to DIR, or dist/
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.tools.export import ROOT, export

ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
"""Debian's own programs: no other Python, and nothing that a person has set."""

LINTIAN: Final = ("lintian", "--allow-root", "--fail-on", "error,warning")


class BuildError(Exception):
    """A program failed; the text is what it said."""


def build(into: Path, work: Path, *, more: Mapping[str, str] | None = None) -> Path:
    """Build binary and source package in ``work``, move them to ``into``; return the .changes.

    Raises ``BuildError``.
    """
    source = export(work / "kvmhooks")
    environment = {**ENVIRONMENT, "HOME": str(work), **(more or {})}
    run(["dpkg-buildpackage", "--no-sign", "--build=full"], source, environment)
    into.mkdir(parents=True, exist_ok=True)
    for path in work.glob("kvmhooks_*"):
        shutil.move(path, into / path.name)
    (changes,) = into.glob("kvmhooks_*.changes")
    return changes


def run(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run a program and return what it said. Raises ``BuildError``."""
    done = subprocess.run(
        command, cwd=folder, env=dict(environment), check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        raise BuildError(f"{command[0]} exited with {done.returncode}:\n{done.stdout[-6000:]}")
    return done.stdout


def main() -> int:
    """Build, check, and name the package."""
    into = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    for old in into.glob("kvmhooks_*"):
        old.unlink()
    os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory(prefix="kvmhooks-deb-") as work:
            changes = build(into, Path(work))
            output = run([*LINTIAN, str(changes)], into, {**ENVIRONMENT, "HOME": work})
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    (package,) = into.glob("kvmhooks_*.deb")
    sys.stdout.write(f"{output}{package}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
