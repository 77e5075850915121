"""Commands on this machine: bounded, checked, their output shown when they fail."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from .errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    seconds: float = 600,
) -> str:
    """Run a program to its end and return what it printed."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        input=stdin,
        text=True,
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-15:]
        raise CommandError(f"{words[0]} exited with {done.returncode}:\n" + "\n".join(last))
    return done.stdout
