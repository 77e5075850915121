"""The programs of helpers on this host, and what they can do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kvm_launch.prepare import paths, persistent_state
from kvm_launch.prepare.helper_spec import Helper, HelperPlace, Program, helpers_of, needed
from kvm_launch.prepare.user import User, user_named
from kvmhooks import bounded
from kvmhooks.closed import ROOTS_ALONE, is_roots_alone
from kvmhooks.errors import LaunchError, Problem
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.present import has_device

PLACES: Final[Mapping[str, tuple[Path, ...]]] = {
    "virtiofsd": (
        Path("/usr/libexec/virtiofsd"),
        Path("/usr/lib/virtiofsd"),
        Path("/usr/lib/qemu/virtiofsd"),
    ),
    "swtpm": (Path("/usr/bin/swtpm"), Path("/usr/local/bin/swtpm")),
    "passt": (Path("/usr/bin/passt"), Path("/usr/local/bin/passt")),
    "unshare": (Path("/usr/bin/unshare"),),
}
"""``PATH`` is not looked at: this may run as root."""

PACKAGES: Final[Mapping[str, str]] = {
    "virtiofsd": "virtiofsd (in Debian 12 it is in qemu-system-common)",
    "swtpm": "swtpm",
    "passt": "passt",
    "unshare": "util-linux",
}

SECONDS: Final = 10.0


def helpers_here(spec: VmSpec, user: User | None) -> tuple[Helper, ...]:
    """Return the helpers of a VM on this host, whose QEMU is run as ``user``.

    Everything that ``problems`` looks for has to be there. Raises ``LaunchError``.
    """
    is_root = os.geteuid() == 0
    alone = served_alone(spec, user)
    users = {
        helper.user: user_named(spec, f"helper[{at}].user", helper.user)
        for at, helper in enumerate(spec.helper)
        if helper.user is not None
    }
    place = HelperPlace(
        programs=found(needed(spec, is_root=is_root, alone=alone).values()),
        user=user,
        users={str(name): user for name, user in users.items()},
        is_root=is_root,
        alone=alone,
        exposed=_exposed(spec, user, alone),
        state=persistent_state.tpm_state(spec),
    )
    return helpers_of(spec, place)


def served_alone(spec: VmSpec, user: User | None) -> frozenset[int]:
    """Return the folders, by index, that ``user`` serves: he can change what they are."""
    shared = enumerate(spec.filesystem)
    return frozenset(
        at for at, filesystem in shared if paths.opener(filesystem.path, user) is not None
    )


def _exposed(spec: VmSpec, user: User | None, alone: frozenset[int]) -> frozenset[int]:
    """Return the folders, by index, that the guest may write to and ``user`` can search.

    A file of the guest's root is root's on the host, setuid too; where that counts for nothing
    (``nosuid``, mount(8)) the folder is left out. So are those of ``alone``: root does not look at
    what ``user`` can change. Raises ``LaunchError``.
    """
    shared = enumerate(spec.filesystem)
    written = {
        at: filesystem.path
        for at, filesystem in shared
        if not filesystem.readonly and at not in alone
    }
    if user is None or not written:
        return frozenset()
    seen = zip(written, paths.look(list(written.values()), user), strict=True)
    reached = {at for at, file in seen if file.may(os.X_OK)}
    return frozenset(at for at in reached if not _is_nosuid(written[at]))


def _is_nosuid(path: Path) -> bool:
    """Return whether setuid counts for nothing on a file system. Raises ``LaunchError``."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_NOSUID)
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}") from error


def problems(spec: VmSpec, user: User | None) -> Iterator[Problem]:
    """Yield what the helpers of a VM lack. Raises ``LaunchError`` for one that does not answer."""
    wanted = needed(spec, is_root=os.geteuid() == 0, alone=served_alone(spec, user))
    there = found(wanted.values())
    for at, name in wanted.items():
        if name not in there:
            yield Problem(at, f"no {name}", f"one of {_listed(PLACES[name])}: see {PACKAGES[name]}")
    state = str(persistent_state.tpm_state(spec))
    if has_device(spec, "tpm") and "," in state:
        yield Problem("tpm.state", repr(state), "no comma: swtpm takes it for the end of the name")
    yield from _shared(spec, there.get("virtiofsd"), user)
    for index, helper in enumerate(spec.helper):
        at, runs = f"helper[{index}]", user
        if helper.user is not None:
            runs = user_named(spec, f"{at}.user", helper.user)
        program = Path(helper.command[0])
        (seen,) = paths.look([program], runs)
        if seen.kind == "folder" or not seen.may(os.X_OK):
            yield Problem(f"{at}.command", repr(str(program)), "a program that can be run")
        elif user is not None and runs is None and not is_roots_alone(program):
            yield Problem(f"{at}.command", repr(str(program)), ROOTS_ALONE)


def _shared(spec: VmSpec, program: Program | None, user: User | None) -> Iterator[Problem]:
    """Yield what cannot be shared, and what an older virtiofsd cannot do."""
    for at, shared in enumerate(spec.filesystem):
        (seen,) = paths.look([shared.path], paths.opener(shared.path, user))
        if seen.kind != "folder":
            lacking = f"no folder {str(shared.path)!r}"
            yield Problem(f"filesystem[{at}].path", lacking, "a folder to share")
        if program is None or "separate-options" in program.features:
            continue
        if "," in str(shared.path):
            yield Problem(f"filesystem[{at}].path", repr(str(shared.path)), "no comma: an older "
                          "virtiofsd takes it for the end of the name")  # fmt: skip
        if shared.readonly:
            yield Problem(f"filesystem[{at}].readonly", "true", "a newer virtiofsd, or false: "
                          f"{program.path} serves for writing only")  # fmt: skip


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


def found(
    names: Iterable[str], places: Mapping[str, tuple[Path, ...]] = PLACES
) -> dict[str, Program]:
    """Return those programs that are there. Raises ``LaunchError`` for one that does not answer."""
    programs = {}
    for name in names:
        path = next((path for path in places[name] if os.access(path, os.X_OK)), None)
        if path is not None:
            features = _features(path) if name == "virtiofsd" else frozenset()
            programs[name] = Program(path=path, features=features)
    return programs


def _features(path: Path) -> frozenset[str]:
    """Return virtiofsd's features (``VHostUserBackendCapabilities``, interop/vhost-user.json)."""
    try:
        done = bounded.run([path, "--print-capabilities"], seconds=SECONDS)
        document: Any = json.loads(done.stdout) if done.returncode == 0 else None
    except OSError as error:
        raise LaunchError(f"{path} --print-capabilities: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LaunchError(f"{path} --print-capabilities: {error}") from error
    features = document.get("features", []) if isinstance(document, dict) else None
    if not isinstance(features, list):
        found = f"ended with {done.returncode}" if done.returncode else "found no list of features"
        raise LaunchError(f"{path} --print-capabilities: {found}")
    return frozenset(map(str, features))
