"""Unpack a captured tree from a tar file that somebody sent.

Only directories, plain files and links are taken, within bounds; links are made last, so that
nothing is written through one, and where they lead is the reader's concern (``tree``).
"""

from __future__ import annotations

import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import HostError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

_ENTRIES_LIMIT: Final = 1_000_000
_BYTES_LIMIT: Final = 512 << 20


@contextmanager
def unpacked(file: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a directory with the tree in it, and remove it afterwards. Raises ``HostError``."""
    with tempfile.TemporaryDirectory(prefix="kvmhooks-host-") as name:
        directory = Path(name)
        try:
            with tarfile.open(file) as archive:
                _unpack(archive, directory)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise HostError(f"{file}: no tar file of a host: {error}") from error
        # Some archives have the tree below one directory.
        inner = list(directory.iterdir())
        if len(inner) == 1 and inner[0].is_dir() and inner[0].name not in {"sys", "proc"}:
            directory = inner[0]
        if not any((directory / part).is_dir() for part in ("sys", "proc")):
            raise HostError(f"{file}: holds neither sys nor proc, so it is no host")
        yield directory


def _unpack(archive: tarfile.TarFile, directory: Path) -> None:
    links: list[tuple[Path, str]] = []
    size = 0
    for count, entry in enumerate(archive):
        size += entry.size
        if count > _ENTRIES_LIMIT or size > _BYTES_LIMIT:
            raise ValueError("too large")
        parts = [part for part in entry.name.split("/") if part not in {"", "."}]
        if not parts:
            continue
        if ".." in parts:
            raise ValueError(f"{entry.name!r} leads out of it")
        path = directory.joinpath(*parts)
        if entry.isdir():
            path.mkdir(parents=True, exist_ok=True)
        elif entry.issym():
            links.append((path, entry.linkname))
        elif entry.isreg():
            path.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(entry)
            path.write_bytes(content.read() if content is not None else b"")
    for path, target in links:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(target)
