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

    Without git, as in an unpacked sdist, everything is copied but what is built. Of modes git knows
    whether a file is executable, and so does the copy: the umask makes no difference.
    """
    if (root / ".git").exists():
        _tracked(into, root)
    else:
        shutil.copytree(root, into, symlinks=True, ignore=LEFT)
    for path in (into, *into.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    return into


def _tracked(into: Path, root: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, check=True, capture_output=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.decode().split("\0")):
        if (root / name).exists():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, into / name)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
