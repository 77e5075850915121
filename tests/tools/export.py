"""The files of the checkout that are the project's, as a tree of their own.

python3 tests/tools/export.py DIR
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
LEFT: Final = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__", "*.egg-info")


def export(into: Path, root: Path = ROOT) -> Path:
    """Copy what git tracks, or would, to ``into``, which must not be there; return it.

    Without git, as in an unpacked sdist, everything is copied but what is built.
    """
    if not (root / ".git").exists():
        return Path(shutil.copytree(root, into, symlinks=True, ignore=LEFT))
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, check=True, capture_output=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.decode().split("\0")):
        if (root / name).exists():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, into / name)
    return into


if __name__ == "__main__":
    export(Path(sys.argv[1]))
