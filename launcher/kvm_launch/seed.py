"""The seed of cloud-init: a small ISO with what a guest is told at its first boot.

The data source is NoCloud (https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html):
a volume called ``cidata`` with ``user-data``, ``meta-data`` and ``network-config``.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, Final

from kvm_launch.user import User
from kvmhooks.distribution import missing
from kvmhooks.errors import LaunchError, Problem, SpecError
from kvmhooks.spec import VmSpec
from kvmhooks.spec.model import CloudInit

OURS: Final = b"KVMHOOKS SEED"
"""The application's identifier in the volume: only what bears it is replaced."""

_IDENTIFIER_AT: Final = 16 * 2048 + 574
"""Where it is: in the primary volume descriptor, sector 16 (ECMA-119, 8.4)."""

EMPTY: Final = b"#cloud-config\n{}\n"


def check(spec: VmSpec) -> None:
    """Raise ``SpecError`` for files that cannot be read, and for a seed that is none of ours."""
    told = spec.cloud_init
    if told is None:
        return
    problems = [
        Problem(f"cloud_init.{key}", f"no file {str(path)!r}", "a file that can be read")
        for key in ("user_data", "meta_data", "network")
        if (path := getattr(told, key)) is not None and not os.access(path, os.R_OK)
    ]
    if told.seed.exists() and not _is_ours(told.seed):
        found = f"a file {str(told.seed)!r} that is no seed of ours"
        problems.append(Problem("cloud_init.seed", found, "a path to make it at"))
    if told.seed not in {disk.path for disk in spec.disk}:
        expected = f"a disk with that path: path = {str(told.seed)!r}, readonly = true"
        problems.append(Problem("cloud_init.seed", "no disk", expected))
    if problems:
        raise SpecError(spec.source, tuple(problems))


def make(spec: VmSpec, uuid: str, user: User | None) -> None:
    """Write the seed anew, for ``user`` alone; the guest knows by its UUID that it is the same.

    Raises ``LaunchError``.
    """
    told = spec.cloud_init
    if told is None:
        return
    new = told.seed.with_name(f".{told.seed.name}.new")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(image(_files(told, spec.name, uuid)))
            if user is not None:
                os.fchown(descriptor, user.uid, user.gid)
        new.replace(told.seed)
    except OSError as error:
        raise LaunchError(f"{error.filename}: {error.strerror}") from error


def image(files: dict[str, bytes]) -> bytes:
    """An ISO of these files. Raises ``LaunchError`` without pycdlib."""
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


def _files(told: CloudInit, name: str, uuid: str) -> dict[str, bytes]:
    meta = json.dumps({"instance-id": uuid, "local-hostname": name}) + "\n"  # YAML takes JSON
    files = {
        "user-data": EMPTY if told.user_data is None else told.user_data.read_bytes(),
        "meta-data": meta.encode() if told.meta_data is None else told.meta_data.read_bytes(),
    }
    if told.network is not None:
        files["network-config"] = told.network.read_bytes()
    return files


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(_IDENTIFIER_AT)
            return file.read(len(OURS)) == OURS
    except OSError:
        return False
