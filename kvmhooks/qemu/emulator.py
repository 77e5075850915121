"""The choice of the QEMU to run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvmhooks.closed import ROOTS_ALONE, is_roots_alone
from kvmhooks.errors import LaunchError, Problem, SpecError
from kvmhooks.spec.model import VmSpec

PLACES: Final = (
    Path("/usr/bin/qemu-system-x86_64"),
    Path("/usr/local/bin/qemu-system-x86_64"),
    Path("/usr/libexec/qemu-kvm"),
)
"""Debian's, one's own, Red Hat's. ``PATH`` is not looked at: this may run as root."""


def find(spec: VmSpec, places: Sequence[Path] = PLACES) -> Path:
    """Return the QEMU of the spec, or the system's.

    Raises ``SpecError`` when the spec's cannot be run, or when others can change it and root would
    ask it what it can do for another user's VM; ``LaunchError`` when the system has none.
    """
    named = spec.machine.emulator
    if named is not None:
        is_anothers = os.geteuid() == 0 and spec.machine.user not in {None, "root"}
        if is_anothers and not is_roots_alone(named):
            problem = Problem("machine.emulator", repr(str(named)), ROOTS_ALONE)
            raise SpecError(spec.source, (problem,))
        if not os.access(named, os.X_OK) or named.is_dir():
            problem = Problem("machine.emulator", repr(str(named)), "a program that can be run")
            raise SpecError(spec.source, (problem,))
        return named
    for place in places:
        if os.access(place, os.X_OK):
            return place
    looked = ", ".join(str(place) for place in places)
    raise LaunchError(
        f"QEMU: found none of {looked}; expected one: install qemu-system-x86 (Debian) or "
        "qemu-kvm (Red Hat), or name it in machine.emulator"
    )
