"""The answers of a QEMU on CPUs and encryption under KVM, as a start has asked: kept for this boot.

They depend on the processor, its microcode, the kernel and how its modules are set, so a verb that
only reads takes them from here, and says that KVM was not tried where there are none. They are kept
beside the verdict on KVM (``kvm.verdict``). To ask QEMU makes a KVM without a vCPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from kvmhooks import files
from kvmhooks.errors import LaunchError
from kvmhooks.kvm.verdict import identity_of
from kvmhooks.machine.target import CpuAnswers
from kvmhooks.qemu.questions import CPU_QUESTIONS, Question, ask, cpu_answers, parse

MEMORY: Final = ".kvm-cpus.json"
"""No VM's directory: their names begin with a letter or a digit."""

_MOST: Final = 1 << 20
"""Bytes of what is kept: 130 models, each with the names of what it lacks."""

_QUESTIONS: Final[tuple[Question, ...]] = (
    *CPU_QUESTIONS,
    ("query-sev-capabilities", {}),
    ("query-version", {}),
)
"""The last is always answered."""

_VENDORS: Final = ("kvm_amd.", "kvm_intel.")
"""The modules whose parameters switch on what guests can have, such as ``nested`` and ``sev``."""

_SEV_AT: Final = len(CPU_QUESTIONS)


def ask_under_kvm(emulator: Path) -> CpuAnswers:
    """Ask a QEMU. Raises ``LaunchError`` when it does not start or does not answer."""
    answers = parse(emulator, ask(emulator, _QUESTIONS, "none,accel=kvm"))
    if unanswered := answers.missing(len(_QUESTIONS)):
        names = ", ".join(_QUESTIONS[at][0] for at in unanswered)
        raise LaunchError(f"{emulator}: did not answer over QMP to {names}")
    sev = answers.returned.get(_SEV_AT) or {}
    return attrs.evolve(
        cpu_answers(answers, 0),
        cbitpos=_number(sev.get("cbitpos")),
        reduced_phys_bits=_number(sev.get("reduced-phys-bits")),
        without_sev=answers.refused.get(_SEV_AT, ""),
    )


def recall(emulator: Path, base: Path, modules: Mapping[str, str] | None) -> CpuAnswers | None:
    """Return the answers of this boot, QEMU and settings of KVM's ``modules``, if there are any."""
    try:
        document = json.loads(files.read(base / MEMORY, _MOST, owner=os.geteuid(), follows=False))
        if document["of"] != _holds_for(emulator, modules):
            return None
        return CpuAnswers(
            lacking={
                str(name): tuple(map(str, features))
                for name, features in document["lacking"].items()
            },
            absent=frozenset(map(str, document["absent"])),
            cbitpos=_number(document["cbitpos"]),
            reduced_phys_bits=_number(document["reduced_phys_bits"]),
            without_sev=str(document["without_sev"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # not there, or not ours to read, or half of it: it is only a memory


def remember(
    answers: CpuAnswers, emulator: Path, directory: int, modules: Mapping[str, str] | None
) -> None:
    """Keep answers in the private ``directory``, as ``kvm.verdict`` does. Raises ``OSError``."""
    document = attrs.asdict(answers) | {"absent": sorted(answers.absent)}
    content = json.dumps({"of": _holds_for(emulator, modules), **document})
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(MEMORY, flags, 0o600, dir_fd=directory), "w") as file:
        file.write(content)


def _holds_for(emulator: Path, modules: Mapping[str, str] | None) -> list[Any]:
    """Return what the answers hold for: a vendor's module may be loaded anew with others."""
    own = {name: value for name, value in (modules or {}).items() if name.startswith(_VENDORS)}
    return [*identity_of(emulator), dict(sorted(own.items()))]


def _number(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 64 else None
