"""The verdict on KVM of this boot, as a probe found it: kept for the VMs that come after.

It is kept beside the VMs' run directories, for this boot and this QEMU. Apart from the probe
itself, so that ``kvm-launch --print``, which only looks here, need not load it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kvmhooks import files

MEMORY: Final = ".kvm-probe.json"
"""No VM's directory: their names begin with a letter or a digit."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@frozen
class Verdict:
    """The verdict on KVM's running Linux here, and what shows it."""

    is_usable: bool
    evidence: str
    is_lasting: bool = True
    """It will be the same until the next boot: not when QEMU did not even start."""


def recall(emulator: Path, base: Path) -> Verdict | None:
    """Return the verdict of this boot on this QEMU, if there is one."""
    try:
        document = json.loads(files.read(base / MEMORY, 1 << 16, owner=os.geteuid(), follows=False))
    except (OSError, ValueError, RecursionError):
        return None  # not there, or not ours to read, or half of it: it is only a memory
    if not isinstance(document, dict) or document.get("of") != identity_of(emulator):
        return None
    return Verdict(
        is_usable=document.get("is_usable") is True, evidence=str(document.get("evidence"))
    )


def remember(verdict: Verdict, emulator: Path, directory: int) -> None:
    """Keep a verdict in the private ``directory`` (``run_dir.private_directory``).

    It is written in place, so that a signal on the way leaves no second file: half of it is no
    JSON, and not recalled. Raises ``OSError``.
    """
    document = {"is_usable": verdict.is_usable, "evidence": verdict.evidence}
    content = json.dumps({"of": identity_of(emulator), **document})
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(MEMORY, flags, 0o600, dir_fd=directory), "w") as file:
        file.write(content)


def identity_of(emulator: Path) -> list[Any]:
    """Return what a verdict of KVM holds for: this boot, and this QEMU as it is now."""
    status = emulator.stat()
    boot = BOOT_ID.read_text(encoding="ascii").strip()
    return [boot, str(emulator), status.st_size, status.st_mtime_ns]
