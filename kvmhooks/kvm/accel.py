"""``machine.accel = "auto"``: KVM where it runs Linux, else TCG, by evidence.

The evidence is a probe guest (``kvmhooks.kvm.probe``), started once per boot and QEMU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import attrs
from attrs import frozen

from kvmhooks.host.model import Host
from kvmhooks.kvm.verdict import MEMORY, recall, remember
from kvmhooks.qemu.run_dir import made, private_directory
from kvmhooks.spec.model import VmSpec


@frozen
class AcceleratorChoice:
    """A spec whose accelerator is settled, and in one line why."""

    spec: VmSpec
    why: str


def choose(spec: VmSpec, host: Host, emulator: Path, base: Path) -> AcceleratorChoice:
    """Settle ``auto``, with a probe if this boot has seen none.

    ``base`` is where the verdict is kept. The spec's own word stands. Raises ``LaunchError`` when
    the verdict cannot be kept there.
    """
    settled = from_memory(spec, host, emulator, base)
    if settled is not None:
        return settled
    from kvmhooks.kvm.probe import probe  # noqa: PLC0415 -- rarely needed: once per boot

    directory = private_directory(base)
    try:
        verdict = probe(emulator)
        if verdict.is_lasting:
            with made(base / MEMORY):
                remember(verdict, emulator, directory)
    finally:
        os.close(directory)
    return _settled(spec, "kvm" if verdict.is_usable else "tcg", verdict.evidence)


def from_memory(spec: VmSpec, host: Host, emulator: Path, base: Path) -> AcceleratorChoice | None:
    """Settle ``auto`` without a probe; None where only a probe can tell."""
    if spec.machine.accel != "auto":
        return AcceleratorChoice(spec, f"accelerator: {spec.machine.accel}, as asked for")
    if host.kvm is None or host.kvm.available is not True:
        return _settled(spec, "tcg", "there is no working /dev/kvm")
    verdict = recall(emulator, base)
    if verdict is None:
        return None
    return _settled(spec, "kvm" if verdict.is_usable else "tcg", verdict.evidence)


def _settled(spec: VmSpec, accel: Literal["kvm", "tcg"], evidence: str) -> AcceleratorChoice:
    machine = attrs.evolve(spec.machine, accel=accel)
    means = "" if accel == "kvm" else " (QEMU emulates the CPU: slow, but it runs)"
    return AcceleratorChoice(
        attrs.evolve(spec, machine=machine), f"accelerator: {accel}{means}: {evidence}"
    )
