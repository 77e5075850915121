"""Capture a host: everything that reading it looks at, as a tree that reads back the same.

The reader itself says what is needed: whatever it opens is kept, and nothing else. It reads what is
kept, redacted already, so the host that it makes is the one that the capture gives.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import HostError
from kvmhooks.host.files.archive import Folder, Growing
from kvmhooks.host.files.directory import PLAIN_DIRECTORY
from kvmhooks.host.files.redact import Redactor
from kvmhooks.host.files.tar import DIRECTORY, FILE, LINK, Entry, TarError
from kvmhooks.host.files.tree import FLAWS
from kvmhooks.host.read import open_tree, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.host.model import Host

_PROCESS: Final = re.compile(r"proc/[1-9]\d*(?:/.*)?", re.ASCII)
_KEPT_PROCESSES: Final = frozenset({"irqbalance"})
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def capture(
    destination: Path, root: str | os.PathLike[str] = "/", *, redacted: bool = True
) -> Host:
    """Write a capture into a new directory, or into a tar file by its suffix.

    Gives the host that the capture reads back. Raises ``HostError`` when the destination is there
    already (an empty directory is taken, a link to one is not) or cannot be written.
    """
    recorder = CaptureRecorder(Redactor() if redacted else None)
    host = read_tree(open_tree(root, recorder))
    try:
        if ".tar" in destination.suffixes or destination.suffix in {".tgz", ".txz"}:
            _write_tar(destination, recorder)
        else:
            _write_directory(destination, recorder)
    except (OSError, TarError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise HostError(f"{destination}: cannot be written: {why}") from error
    return host


class CaptureRecorder:
    """Keeps what was read, by path."""

    def __init__(self, redactor: Redactor | None) -> None:
        self._redactor = redactor
        self.directories: set[str] = set()
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.flaws: list[tuple[str, str]] = []

    def saw_directory(self, path: str) -> None:
        """Keep a directory; of other people's processes nothing is kept."""
        if not _PROCESS.fullmatch(path):
            self.directories.add(self.public(path))

    def saw_text(self, path: str, text: str) -> str:
        """Keep a file; the flaws of an earlier capture come by themselves."""
        if path == "proc/cmdline" and self._redactor is not None:
            text = self._redactor.cmdline(text)
        else:
            text = self.public(text)
        if path == FLAWS:
            return text
        if not _PROCESS.fullmatch(path):
            self.files[self.public(path)] = text
        elif path == "proc/1/comm" or text in _KEPT_PROCESSES:
            self.files[path] = text
        return text

    def saw_link(self, path: str, target: str) -> str:
        """Keep a link."""
        target = self.public(target)
        self.links[self.public(path)] = target
        return target

    def saw_flaw(self, path: str, what: str) -> None:
        """Keep what was wrong with a file that cannot be kept."""
        self.flaws.append((self.public(path), what))

    def public(self, name: str) -> str:
        """Give a text as it may be shown to others."""
        return name if self._redactor is None else self._redactor.text(name)

    def plain_directories(self) -> list[str]:
        """Return the directories that are neither files nor links, parents first."""
        unread = {path for path, _ in self.flaws}
        kept = self.directories - self.files.keys() - self.links.keys() - unread
        above = {
            path[: found.start()]
            for path in (*kept, *self.files, *self.links)
            for found in re.finditer("/", path)
        }
        return sorted((kept | above) - self.links.keys() - {""})

    def entries(self) -> Iterator[Entry]:
        """Give all that was kept, directories first, and the flaws as the tree reads them back."""
        for path in self.plain_directories():
            yield Entry(DIRECTORY, path, "", b"")
        for path, text in sorted(self.files.items()):
            yield Entry(FILE, path, "", f"{text}\n".encode())
        for path, target in sorted(self.links.items()):
            yield Entry(LINK, path, target, b"")
        if self.flaws:
            lines = "".join(f"{path}\t{what}\n" for path, what in sorted(set(self.flaws)))
            yield Entry(FILE, FLAWS, "", lines.encode())


def _write_directory(destination: Path, recorder: CaptureRecorder) -> None:
    """Write into a new or an empty directory, and through no link that somebody puts into it."""
    tree = Growing()
    for entry in recorder.entries():
        tree.add(entry)
    destination.mkdir(parents=True, exist_ok=True)
    directory = os.open(destination, PLAIN_DIRECTORY)
    try:
        if os.listdir(directory):  # noqa: PTH208 -- of what was opened
            raise HostError(f"{destination}: is not empty")
        _fill(directory, tree.top)
    finally:
        os.close(directory)


def _fill(directory: int, folder: Folder) -> None:
    """Make in an open directory what a folder holds; nothing of it may be there already."""
    for name, node in folder.items():
        if isinstance(node, dict):
            os.mkdir(name, 0o755, dir_fd=directory)
            below = os.open(name, PLAIN_DIRECTORY, dir_fd=directory)
            try:
                _fill(below, node)
            finally:
                os.close(below)
        elif isinstance(node, str):
            os.symlink(node, name, dir_fd=directory)
        else:
            with os.fdopen(os.open(name, _NEW_FILE, 0o644, dir_fd=directory), "wb") as file:
                file.write(node)


def _write_tar(destination: Path, recorder: CaptureRecorder) -> None:
    """Write a tar file, compressed as its last suffix says, that is the same for the same host."""
    kinds = {".gz": "gz", ".tgz": "gz", ".xz": "xz", ".txz": "xz", ".bz2": "bz2"}
    how = kinds.get(destination.suffix, "")
    with destination.open("xb") as file:
        try:
            with tarfile.open(mode=f"w:{how}", fileobj=file) as archive:  # type: ignore[call-overload]
                for entry in recorder.entries():
                    _add(archive, entry)
        except BaseException:
            destination.unlink(missing_ok=True)
            raise


def _add(archive: tarfile.TarFile, entry: Entry) -> None:
    written = tarfile.TarInfo(entry.name)
    written.type, written.linkname, written.size = entry.kind, entry.target, len(entry.content)
    written.mode = 0o755 if entry.kind == DIRECTORY else 0o644
    archive.addfile(written, io.BytesIO(entry.content))
