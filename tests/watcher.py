"""Sees which files reading a host opens."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Watcher:
    """A recorder that notes the files by where they really are, and changes nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: list[str] = []

    def saw_directory(self, path: str) -> None:
        """Directories are not counted."""

    def saw_text(self, path: str, text: str) -> str:
        """Note one file."""
        self.opened.append(os.path.realpath(self.root / path))
        return text

    def saw_link(self, path: str, target: str) -> str:
        """Links are not counted."""
        del path
        return target

    def saw_flaw(self, path: str, what: str) -> None:
        """Fail: the trees that are watched are whole."""
        raise AssertionError(path, what)

    def public(self, name: str) -> str:
        """Change nothing."""
        return name
