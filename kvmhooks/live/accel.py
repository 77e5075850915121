"""``machine.accel = "auto"``: KVM where it runs Linux, else TCG, by evidence.

The evidence is a probe guest (``kvmhooks.live.probe``), started once per boot, kernel module and
QEMU: its verdict is remembered beside the VMs' run directories.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Literal

import attrs
from attrs import frozen

from kvmhooks.host.model import Host
from kvmhooks.live.probe import Verdict, probe
from kvmhooks.live.rundir import private_directory
from kvmhooks.spec.model import VmSpec

MEMORY: Final = "kvm-probe.json"
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@frozen
class Choice:
    """A spec whose accelerator is settled, and in one line why."""

    spec: VmSpec
    why: str


def choose(spec: VmSpec, host: Host, emulator: Path, base: Path) -> Choice:
    """Settle ``auto``, with a probe if this boot has seen none.

    ``base`` is where the verdict is kept. What the spec says outright stands. Raises
    ``LaunchError`` when the verdict cannot be kept there.
    """
    settled = from_memory(spec, host, emulator, base)
    if settled is not None:
        return settled
    verdict = probe(emulator)
    if verdict.is_lasting:
        _remember(verdict, emulator, base)
    return _settled(spec, "kvm" if verdict.is_usable else "tcg", verdict.evidence)


def from_memory(spec: VmSpec, host: Host, emulator: Path, base: Path) -> Choice | None:
    """Settle ``auto`` without a probe; None where only a probe can tell."""
    if spec.machine.accel != "auto":
        return Choice(spec, f"accelerator: {spec.machine.accel}, as asked for")
    if host.kvm is None or host.kvm.available is not True:
        return _settled(spec, "tcg", "there is no working /dev/kvm")
    verdict = recall(emulator, base)
    if verdict is None:
        return None
    return _settled(spec, "kvm" if verdict.is_usable else "tcg", verdict.evidence)


def recall(emulator: Path, base: Path) -> Verdict | None:
    """The verdict of this boot on this QEMU, if there is one."""
    try:
        descriptor = os.open(base / MEMORY, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # not there, or not ours to read: it is only a memory
    with os.fdopen(descriptor, "rb") as file:
        is_ours = os.fstat(descriptor).st_uid == os.geteuid()
        content = file.read(1 << 16)
    try:
        said = json.loads(content)
    except ValueError:
        return None
    if not is_ours or not isinstance(said, dict) or said.get("of") != _identity(emulator):
        return None
    return Verdict(is_usable=said.get("is_usable") is True, evidence=str(said.get("evidence")))


def _remember(verdict: Verdict, emulator: Path, base: Path) -> None:
    directory = private_directory(base)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{MEMORY}.new", flags, 0o600, dir_fd=directory)
        with os.fdopen(descriptor, "w") as file:
            said = {"is_usable": verdict.is_usable, "evidence": verdict.evidence}
            json.dump({"of": _identity(emulator), **said}, file)
        os.rename(f"{MEMORY}.new", MEMORY, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


def _identity(emulator: Path) -> list[Any]:
    """What a verdict holds for: this boot, and this QEMU as it is now."""
    status = emulator.stat()
    boot = BOOT_ID.read_text(encoding="ascii").strip()
    return [boot, str(emulator), status.st_size, status.st_mtime_ns]


def _settled(spec: VmSpec, accel: Literal["kvm", "tcg"], evidence: str) -> Choice:
    machine = attrs.evolve(spec.machine, accel=accel)
    means = "" if accel == "kvm" else " (QEMU emulates the CPU: slow, but it runs)"
    return Choice(attrs.evolve(spec, machine=machine), f"accelerator: {accel}{means}: {evidence}")
