"""setuptools as the build backend, with archives that are the same whoever builds them, and where.

setuptools writes a file's time and mode as they are in the checkout, and into an sdist the
builder's name. Here each is what ``SOURCE_DATE_EPOCH`` and git say
(https://reproducible-builds.org/specs/source-date-epoch/): the time is given, or 1980's first day,
and of the mode only whether a file is executable remains.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_EARLIEST = 315532800
"""1980-01-01, the first time that a zip file can say."""


def build_sdist(directory: str, settings: Mapping[str, Any] | None = None) -> str:
    """Build the sdist in ``directory``, and return its name."""
    name: str = build_meta.build_sdist(directory, settings)
    path = Path(directory, name)
    made = io.BytesIO()
    with (
        tarfile.open(path) as before,
        tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda entry: entry.name):
            member.mtime = _time()
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            after.addfile(member, before.extractfile(member) if member.isreg() else None)
    path.write_bytes(gzip.compress(made.getvalue(), mtime=_time()))
    return name


def build_wheel(
    directory: str, settings: Mapping[str, Any] | None = None, metadata: str | None = None
) -> str:
    """Build the wheel in ``directory``, and return its name."""
    name: str = build_meta.build_wheel(directory, settings, metadata)
    path = Path(directory, name)
    with zipfile.ZipFile(path) as before:
        files = {
            entry.filename: (before.read(entry), entry.external_attr >> 16)
            for entry in before.infolist()
        }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for filename, (content, mode) in files.items():
            member = zipfile.ZipInfo(filename, time.gmtime(_time())[:6])
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (0o100755 if mode & 0o100 else 0o100644) << 16
            after.writestr(member, content)
    return name


def _time() -> int:
    """Return seconds since 1970 that all files are of."""
    return max(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), _EARLIEST)
