"""Where the programs of helpers are on this host, and what they can do."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kvm_launch import keeping
from kvm_launch.helper import Helper, Place, Program, helpers_of, needed
from kvm_launch.user import User, user_named
from kvmhooks.errors import LaunchError, Problem
from kvmhooks.spec import VmSpec

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
    """The helpers of a VM on this host, whose QEMU is run as ``user``.

    Everything that ``problems`` looks for has to be there. Raises ``LaunchError``.
    """
    is_root = os.geteuid() == 0
    users = {
        helper.user: user_named(spec, f"helper[{at}].user", helper.user)
        for at, helper in enumerate(spec.helper)
        if helper.user is not None
    }
    place = Place(
        programs=found(needed(spec, is_root=is_root).values()),
        user=user,
        users={str(name): one for name, one in users.items()},
        is_root=is_root,
        state=keeping.tpm_state(spec),
    )
    return helpers_of(spec, place)


def problems(spec: VmSpec) -> Iterator[Problem]:
    """What the helpers of a VM lack. Raises ``LaunchError`` for one that does not answer."""
    wanted = needed(spec, is_root=os.geteuid() == 0)
    there = found(wanted.values())
    for at, name in wanted.items():
        if name not in there:
            yield Problem(at, f"no {name}", f"one of {_listed(PLACES[name])}: see {PACKAGES[name]}")
    yield from _shared(spec, there.get("virtiofsd"))
    state = str(keeping.tpm_state(spec))
    if spec.tpm.model != "none" and "," in state:
        yield Problem("tpm.state", repr(state), "no comma: swtpm takes it for the end of the name")
    for index, helper in enumerate(spec.helper):
        at = f"helper[{index}]"
        if helper.user is not None:
            user_named(spec, f"{at}.user", helper.user)
        program = helper.command[0]
        if not os.access(program, os.X_OK) or Path(program).is_dir():
            yield Problem(f"{at}.command", repr(program), "a program that can be run")


def _shared(spec: VmSpec, program: Program | None) -> Iterator[Problem]:
    """What cannot be shared, and what an older virtiofsd cannot do."""
    for at, shared in enumerate(spec.filesystem):
        if not shared.path.is_dir():
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
    """Those programs that are there. Raises ``LaunchError`` for one that does not answer."""
    programs = {}
    for name in names:
        path = next((path for path in places[name] if os.access(path, os.X_OK)), None)
        if path is not None:
            features = _features(path) if name == "virtiofsd" else frozenset()
            programs[name] = Program(path=path, features=features)
    return programs


def _features(path: Path) -> frozenset[str]:
    """What virtiofsd can do (``VHostUserBackendCapabilities``, docs/interop/vhost-user.json)."""
    try:
        done = subprocess.run(
            [path, "--print-capabilities"], capture_output=True, timeout=SECONDS, check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise LaunchError(f"{path} --print-capabilities: {error}") from error
    return frozenset(map(str, said.get("features", ())))
