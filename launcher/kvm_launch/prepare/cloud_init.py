"""The seed of cloud-init: a small ISO with what a guest is told at its first boot.

The data source is NoCloud (https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html):
a volume called ``cidata`` with ``user-data``, ``meta-data`` and ``network-config``.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kvm_launch.prepare import paths
from kvm_launch.prepare.user import User
from kvmhooks.distribution import missing
from kvmhooks.errors import LaunchError, Problem, SpecError
from kvmhooks.spec.model import CloudInit, VmSpec

OURS: Final = b"KVMHOOKS SEED"
"""The application's identifier in the volume: only what bears it is replaced."""

_IDENTIFIER_AT: Final = 16 * 2048 + 574
"""The identifier's offset: in the primary volume descriptor, sector 16 (ECMA-119, 8.4)."""

EMPTY: Final = b"#cloud-config\n{}\n"

MOST_BYTES: Final = 16 << 20
"""The largest size of each of its files: all are in memory at once. EC2 takes 16 KiB of user data,
OpenStack 64 KiB (nova, ``MAX_USERDATA_SIZE``).
"""


def check(spec: VmSpec, user: User | None) -> None:
    """Raise ``SpecError`` for files that cannot be read, and for a seed where another file is.

    Each is looked at by who opens it for a QEMU that is ``user`` (``kvm_launch.prepare.paths``).
    """
    told = spec.cloud_init
    if told is None:
        return
    problems = [*_sources(told, user), *_place(told, user)]
    if problems:
        raise SpecError(spec.source, tuple(problems))


def make(spec: VmSpec, uuid: str, user: User | None) -> None:
    """Write the seed anew, for ``user`` alone; the guest knows by its UUID that it is the same.

    The old one stays until the new one is whole. Raises ``LaunchError``.
    """
    told = spec.cloud_init
    if told is None:
        return
    try:
        paths.replace(told.seed, image(_files(told, spec.name, uuid, user)), user)
    except OSError as error:
        raise LaunchError(f"{error.filename}: {error.strerror}") from error


def image(files: dict[str, bytes]) -> bytes:
    """Return an ISO of these files. Raises ``LaunchError`` without pycdlib."""
    try:
        import pycdlib
    except ImportError as error:
        raise LaunchError(f"cloud_init: {missing('cloud-init')}") from error
    iso: Any = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata",
            app_ident_str=OURS.decode())  # fmt: skip
    for at, (name, data) in enumerate(files.items()):
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{at}.;1", rr_name=name,
                   joliet_path=f"/{name}")  # fmt: skip
    made = io.BytesIO()
    iso.write_fp(made)
    iso.close()
    return made.getvalue()


def _sources(told: CloudInit, user: User | None) -> Iterator[Problem]:
    """Say what of the user's files cannot be read."""
    for key in ("user_data", "meta_data", "network"):
        path: Path | None = getattr(told, key)
        if path is None:
            continue
        (seen,) = paths.look([path], paths.opener(path, user))
        if seen.kind != "file" or not seen.may(os.R_OK):
            is_there = seen.kind in {"file", "denied"}
            lacking = "no permission for" if is_there else "no file"
            expected = "a file that can be read"
            yield Problem(f"cloud_init.{key}", f"{lacking} {str(path)!r}", expected)
        elif seen.size > MOST_BYTES:
            expected = f"{MOST_BYTES >> 20} MiB at the most"
            yield Problem(f"cloud_init.{key}", f"{seen.size} bytes in {str(path)!r}", expected)


def _place(told: CloudInit, user: User | None) -> Iterator[Problem]:
    """Say what keeps the seed from being put where it is to be."""
    folder = told.seed.parent
    seen, above = paths.look([told.seed, folder], paths.opener(folder, user))
    if seen.kind not in {"nothing", "denied"} and not _is_ours(told.seed, user):
        found = f"a file {str(told.seed)!r} that is no seed of ours"
        yield Problem("cloud_init.seed", found, "a path to make it at")
    elif above.kind != "folder":
        yield Problem("cloud_init.seed", f"no folder {str(folder)!r}", "one to make it in")
    elif not above.may(os.W_OK | os.X_OK):
        yield Problem("cloud_init.seed", f"no permission for {str(folder)!r}", "one to make it in")


def _files(told: CloudInit, name: str, uuid: str, user: User | None) -> dict[str, bytes]:
    """Return the files of the seed by their names there. Raises ``OSError``, ``LaunchError``."""

    def of(path: Path) -> bytes:
        data = paths.read(path, user, limit=MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise LaunchError(
                f"cloud_init: {path}: found more than {MOST_BYTES >> 20} MiB, expected less"
            )
        return data

    meta = json.dumps({"instance-id": uuid, "local-hostname": name}) + "\n"  # YAML takes JSON
    files = {
        "user-data": EMPTY if told.user_data is None else of(told.user_data),
        "meta-data": meta.encode() if told.meta_data is None else of(told.meta_data),
    }
    if told.network is not None:
        files["network-config"] = of(told.network)
    return files


def _is_ours(path: Path, user: User | None) -> bool:
    try:
        return paths.read(path, user, start=_IDENTIFIER_AT, limit=len(OURS)) == OURS
    except OSError:
        return False
