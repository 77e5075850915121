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
from kvmhooks.host.read import read_tree
from kvmhooks.host.redact import Redactor
from kvmhooks.host.tree import FLAWS, Tree

if TYPE_CHECKING:
    from kvmhooks.host.model import Host

_PROCESS: Final = re.compile(r"proc/[1-9]\d*(?:/.*)?", re.ASCII)
_KEPT_PROCESSES: Final = frozenset({"irqbalance"})


def capture(
    destination: Path, root: str | os.PathLike[str] = "/", *, redacted: bool = True
) -> Host:
    """Write a capture into a new directory, or into a tar file by its suffix.

    Gives the host that the capture reads back. Raises ``HostError`` when the destination is there
    already (an empty directory is taken) or cannot be written.
    """
    recorder = CaptureRecorder(Redactor() if redacted else None)
    host = read_tree(Tree(root, recorder))
    try:
        if ".tar" in destination.suffixes or destination.suffix in {".tgz", ".txz"}:
            _write_tar(destination, recorder)
        else:
            _write_directory(destination, recorder)
    except OSError as error:
        raise HostError(f"{destination}: cannot be written: {error.strerror}") from error
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
        """The directories that are neither files nor links, parents first."""
        unread = {path for path, _ in self.flaws}
        kept = self.directories - self.files.keys() - self.links.keys() - unread
        above = {
            path[: found.start()]
            for path in (*kept, *self.files, *self.links)
            for found in re.finditer("/", path)
        }
        return sorted((kept | above) - self.links.keys() - {""})

    def flaw_lines(self) -> str:
        """The flaws as the tree reads them back."""
        return "".join(f"{path}\t{what}\n" for path, what in sorted(set(self.flaws)))


def _write_directory(destination: Path, recorder: CaptureRecorder) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    if any(destination.iterdir()):
        raise HostError(f"{destination}: is not empty")
    for path in recorder.plain_directories():
        (destination / path).mkdir(exist_ok=True)
    for path, text in recorder.files.items():
        (destination / path).write_text(f"{text}\n", encoding="utf-8")
    for path, target in recorder.links.items():
        (destination / path).symlink_to(target)
    if recorder.flaws:
        (destination / FLAWS).write_text(recorder.flaw_lines(), encoding="utf-8")


def _write_tar(destination: Path, recorder: CaptureRecorder) -> None:
    """Write a tar file, compressed as its last suffix says, that is the same for the same host."""
    kinds = {".gz": "gz", ".tgz": "gz", ".xz": "xz", ".txz": "xz", ".bz2": "bz2"}
    how = kinds.get(destination.suffix, "")
    with tarfile.open(destination, f"x:{how}") as archive:  # type: ignore[call-overload]
        for path in recorder.plain_directories():
            _add(archive, path, tarfile.DIRTYPE)
        for path, text in sorted(recorder.files.items()):
            _add(archive, path, tarfile.REGTYPE, content=f"{text}\n")
        for path, target in sorted(recorder.links.items()):
            _add(archive, path, tarfile.SYMTYPE, target=target)
        if recorder.flaws:
            _add(archive, FLAWS, tarfile.REGTYPE, content=recorder.flaw_lines())


def _add(
    archive: tarfile.TarFile, path: str, kind: bytes, *, content: str = "", target: str = ""
) -> None:
    entry = tarfile.TarInfo(path)
    data = content.encode()
    entry.type, entry.linkname, entry.size = kind, target, len(data)
    entry.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    archive.addfile(entry, io.BytesIO(data))
