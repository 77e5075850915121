"""The programs among the examples do what their command line says, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "examples/guest/build.py"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--help"], 0, "usage: build.py [-h] FOLDER"),
        ([], 2, "the following arguments are required: FOLDER"),
        (["guest", "other"], 2, "unrecognized arguments: other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_guests_build_makes_nothing_unless_told_where(
    tmp_path: Path, words: list[str], code: int, told: str
) -> None:
    """`--help` is no folder."""
    run = subprocess.run(
        [sys.executable, BUILD, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == code
    assert told in run.stdout + run.stderr
    assert list(tmp_path.iterdir()) == []
