"""The files of a host that are in a tar file: read as those of a directory are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kvmhooks.host.files.directory import Directory
from kvmhooks.host.files.tree import NOWHERE, Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.host.files.archive import Folder, Node
    from kvmhooks.host.files.tree import Recorder


class PackedTree(Tree):
    """A host's files, as ``read_archive`` gives them from the tar file ``name``."""

    def __init__(
        self, top: Folder, name: str | os.PathLike[str], recorder: Recorder | None = None
    ) -> None:
        self._top = top
        super().__init__(name, recorder)
        assert not self.is_live

    def _open_root(self, root: str | os.PathLike[str]) -> list[str]:
        del root
        return list(self._top)

    def directory(self, path: str) -> Directory | None:
        """Open a directory given by its path below the root; None when there is none."""
        found = self.node(path)
        if not isinstance(found, dict):
            return None
        return self.opened(PackedDirectory(self, path, found))

    def node(self, path: str) -> Node | None:
        """Return what a path leads to, through links; None where it leads nowhere."""
        at = self.resolve(path)
        return None if at is None else self._at(at)

    def _at(self, path: str) -> Node | None:
        """Return what is at a path in which there are no links."""
        found: Node | None = self._top
        for name in filter(None, path.split("/")):
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def _read_link(self, at: str) -> str | None:
        found = self._at(at)
        return NOWHERE if found is None else found if isinstance(found, str) else None


class PackedDirectory(Directory):
    """One directory of it."""

    __slots__ = ("_folder",)

    tree: PackedTree

    def __init__(self, tree: PackedTree, path: str, folder: Folder) -> None:
        super().__init__(tree, path, -1)
        self._folder = folder

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def _listed(self) -> list[str]:
        return list(self._folder)

    def _target(self, name: str) -> str | None:
        found = self._folder.get(name)
        return found if isinstance(found, str) else None

    def child(self, name: str) -> Directory | None:
        """Open a directory in this one; None when there is none."""
        return self.tree.directory(f"{self.path}/{name}")

    def _content(self, name: str, *, limit: int, whole: bool) -> bytes | None:
        del limit, whole
        found = self.tree.node(f"{self.path}/{name}")
        if isinstance(found, dict):
            self.tree.unread(f"{self.path}/{name}", "is no regular file")
        return found if isinstance(found, bytes) else None

    def chunks(self, name: str) -> Iterator[bytes]:
        """Give the bytes of a file."""
        content = self._content(name, limit=0, whole=True)
        if content:
            yield content

    def _look_for(self, name: str) -> None:
        if name not in self._folder:
            raise FileNotFoundError(name)
