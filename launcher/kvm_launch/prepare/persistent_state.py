"""The state that a VM keeps on the host from life to life: its TPM's, its UEFI variables."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvm_launch.prepare import paths
from kvmhooks.errors import LaunchError, Problem
from kvmhooks.machine.firmware import firmware_of
from kvmhooks.spec.present import has_device

if TYPE_CHECKING:
    from kvm_launch.prepare.user import User
    from kvmhooks.spec import VmSpec

SYSTEM: Final = Path("/var/lib/kvm-launch")
FOLDER: Final = "kvm-launch"

MOST_BYTES: Final = 16 << 20
"""The largest size of a PC's firmware (``pc_machine_set_max_fw_size()``, hw/i386/pc.c)."""


def tpm_state(spec: VmSpec) -> Path:
    """Return the folder of the TPM's state.

    No environment variable is looked at for root; for others ``XDG_STATE_HOME``.
    """
    return _named_state(spec) or _base() / spec.name / "tpm"


def _named_state(spec: VmSpec) -> Path | None:
    return None if spec.tpm is None else spec.tpm.state


def problems(spec: VmSpec, user: User | None) -> Iterator[Problem]:
    """Yield what keeps the state from being made, or from being used as it is."""
    owner = os.geteuid() if user is None else user.uid
    if has_device(spec, "tpm"):
        is_named = _named_state(spec) is not None
        yield from _state_problems("tpm.state", tpm_state(spec), owner, is_named)
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
    if has_device(spec, "tpm"):
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
    state_home = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state_home) if state_home.startswith("/") else Path.home() / ".local/state"
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
    """Return the folder, and what is above it where that is ours to choose."""
    path = tpm_state(spec)
    if path.exists():
        return []
    try:
        if _named_state(spec) is None:
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
