"""What a VM keeps on the host from one life to the next: its TPM's state, its UEFI variables."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kvm_launch import paths
from kvm_launch.user import User
from kvmhooks.errors import LaunchError, Problem
from kvmhooks.placement.firmware import firmware_of
from kvmhooks.spec import VmSpec

SYSTEM: Final = Path("/var/lib/kvm-launch")
FOLDER: Final = "kvm-launch"

MOST_BYTES: Final = 16 << 20
"""How large a PC's firmware may be (``pc_machine_set_max_fw_size()``, hw/i386/pc.c)."""


def tpm_state(spec: VmSpec) -> Path:
    """The folder of the TPM's state.

    No environment variable is looked at for root; for others ``XDG_STATE_HOME``.
    """
    if spec.tpm.state is not None:
        return spec.tpm.state
    return _base() / spec.name / "tpm"


def problems(spec: VmSpec, user: User | None) -> Iterator[Problem]:
    """What keeps the state from being made, or from being used as it is."""
    owner = os.geteuid() if user is None else user.uid
    if spec.tpm.model != "none":
        yield from _state_problems("tpm.state", tpm_state(spec), owner, spec.tpm.state is not None)
    firmware = firmware_of(spec)
    if firmware is None or _are_there(firmware.variables, user):
        return
    template, folder = firmware.template, firmware.variables.parent
    (seen,) = paths.look([template], paths.opener(template, user))
    if seen.kind != "file" or not seen.may(os.R_OK):
        yield Problem("boot.template", f"no file {str(template)!r}", "OVMF's empty variables")
    (above,) = paths.look([folder], paths.opener(folder, user))
    if above.kind != "folder":
        found = f"no folder {str(folder)!r}"
        yield Problem("boot.variables", found, "one to make the variables in")


def make(spec: VmSpec, user: User | None) -> list[Path]:
    """Make what is not there yet, for ``user``, and give the paths; nothing is overwritten.

    Raises ``LaunchError``.
    """
    made = []
    if spec.tpm.model != "none":
        made += _make_state(spec, user)
    firmware = firmware_of(spec)
    if firmware is not None and not _are_there(firmware.variables, user):
        try:
            _copy(firmware.template, firmware.variables, user)
        except OSError as error:
            raise LaunchError(f"boot.variables: {error.filename}: {error.strerror}") from error
        made.append(firmware.variables)
    return made


def _base() -> Path:
    if os.geteuid() == 0:
        return SYSTEM
    said = os.environ.get("XDG_STATE_HOME", "")
    home = Path(said) if said.startswith("/") else Path.home() / ".local/state"
    return home / FOLDER


def _state_problems(at: str, path: Path, owner: int, is_named: bool) -> Iterator[Problem]:  # noqa: FBT001 -- a private fact
    try:
        status = path.lstat()
    except FileNotFoundError:
        if is_named and not path.parent.is_dir():
            yield Problem(at, f"no folder {str(path.parent)!r}", "one to make the folder in")
        return
    except OSError as error:
        yield Problem(at, f"{str(path)!r}: {error.strerror}", "a folder")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Problem(at, f"no folder {str(path)!r}", "a folder")
    elif status.st_uid != owner or status.st_mode & 0o077:
        found = f"{str(path)!r} of user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
        yield Problem(at, found, f"one of user {owner} alone, mode 700")


def _make_state(spec: VmSpec, user: User | None) -> list[Path]:
    """The folder, and what is above it where that is ours to choose."""
    path = tpm_state(spec)
    if path.exists():
        return []
    try:
        if spec.tpm.state is None:
            path.parent.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if not path.parent.is_dir():
                paths.make_folder(path.parent, user)
        paths.make_folder(path, user)
    except OSError as error:
        raise LaunchError(f"tpm.state: {error.filename}: {error.strerror}") from error
    return [path]


def _are_there(variables: Path, user: User | None) -> bool:
    """Return whether there is anything in the place of the variables."""
    (seen,) = paths.look([variables], paths.opener(variables, user))
    return seen.kind not in {"nothing", "denied"}


def _copy(source: Path, target: Path, user: User | None) -> None:
    """Copy a file: it is whole or not there, and nothing is overwritten. Raises ``OSError``."""
    data = paths.read(source, user, limit=MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise LaunchError(f"boot.template: {source}: found more than {MOST_BYTES >> 20} MiB, "
                          "expected OVMF's empty variables")  # fmt: skip
    paths.make(target, data, user)
