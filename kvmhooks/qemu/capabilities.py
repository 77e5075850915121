"""The programs that VMs need: which QEMU and libvirt there are, and what that QEMU can do.

QEMU is asked once (``qemu.questions``). Its answer is kept for that very binary: a new one has
another identity and is asked anew. Features that depend on the host or its kernel, too, are asked
for under KVM at a start (``kvm.cpus``). It is here and not in ``host``: a host is read from files,
which a captured tree has too, and this starts programs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import field, frozen

from kvmhooks import bounded, files
from kvmhooks.errors import LaunchError
from kvmhooks.machine.target import CpuAnswers
from kvmhooks.qemu.emulator import PLACES
from kvmhooks.qemu.questions import CPU_QUESTIONS, SECONDS, Question, ask, cpu_answers, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_FORMAT: Final = 4
"""Of what is kept; counted up when more is asked."""

_MOST: Final = 4 << 20
"""Bytes of what is kept of a QEMU: its options take 100 KiB."""

_LIBVIRTD: Final = tuple(
    Path(place, name)
    for place in ("/usr/sbin", "/usr/local/sbin")
    for name in ("libvirtd", "virtqemud")
)
_VERSION: Final = re.compile(r"\b(\d+\.\d+\.\d+)\b", re.ASCII)
_OPTIONS_OF: Final = (
    *("virtio-blk-pci", "virtio-scsi-pci", "virtio-net-pci", "vfio-pci"),
    "max-x86_64-cpu",
)
"""Devices whose options depend on the version (``iothread-vq-mapping`` and such); those of the CPU
model that has everything are the features that QEMU knows (``-cpu help``)."""
_QUESTIONS: Final[tuple[Question, ...]] = (
    ("query-version", {}),
    ("query-kvm", {}),
    ("query-machines", {}),
    *CPU_QUESTIONS,
    ("qom-list-types", {"abstract": False}),
    ("query-commands", {}),
    *[("device-list-properties", {"typename": name}) for name in _OPTIONS_OF],
    # Refused in any case: either the kind of I/O is not known, or /dev/null is no regular file.
    (
        "blockdev-add",
        {"driver": "file", "node-name": "a", "filename": "/dev/null", "aio": "io_uring"},
    ),
)


_CPU_AT: Final = _QUESTIONS.index(CPU_QUESTIONS[0])
"""The number of the first question about CPUs."""


@frozen
class Qemu:
    """One QEMU and what it says of itself; names are sorted."""

    path: str
    version: str
    machines: tuple[str, ...]
    default_machine: str | None
    cpu_models: tuple[str, ...]
    types: tuple[str, ...]
    """Devices, backends and other objects that can be made."""
    commands: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    """Of some devices, those that it has."""
    io_uring: bool = False
    """It was built with io_uring; the kernel may still refuse it."""
    lacking: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """The features of a named CPU model that TCG, its own emulation, does not have."""
    absent: tuple[str, ...] = ()
    """The features that TCG does not have at all."""


@frozen
class Programs:
    """The programs that are installed here; None is «not found»."""

    qemu: Qemu | None
    libvirt: str | None
    """Its version."""

    def to_json(self) -> dict[str, Any]:
        """Give it as what ``json.dumps`` takes."""
        return attrs.asdict(self)


def probe(emulators: Sequence[Path] = PLACES, daemons: Sequence[Path] = _LIBVIRTD) -> Programs:
    """Find the programs and ask them, or remember what they said. Raises ``LaunchError``."""
    qemu = next((place for place in emulators if os.access(place, os.X_OK)), None)
    return Programs(
        qemu=None if qemu is None else capabilities(qemu, cache_directory()),
        libvirt=libvirt_version(daemons),
    )


def libvirt_version(daemons: Sequence[Path] = _LIBVIRTD) -> str | None:
    """Return libvirt's version; None where it is not found or does not say."""
    daemon = next((place for place in daemons if os.access(place, os.X_OK)), None)
    return None if daemon is None else _ask_version(daemon)


def capabilities(emulator: Path, cache: Path) -> Qemu:
    """Tell what a QEMU can do, from ``cache`` if it was asked before. Raises ``LaunchError``."""
    file = cache / f"qemu-{_identity(emulator)}.json"
    kept = _recall(file)
    if kept is not None:
        return kept
    qemu = parse_answers(emulator, ask(emulator, _QUESTIONS))
    _remember(file, qemu)
    return qemu


def cache_directory() -> Path:
    """Return where answers are kept: no environment variable is looked at for root."""
    if os.geteuid() == 0:
        return Path("/var/cache/kvmhooks")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "kvmhooks")


def describe(programs: Programs) -> Iterator[str]:
    """Give the lines for a person."""
    qemu = programs.qemu
    yield ""
    if qemu is None:
        yield "QEMU:      not found"
    else:
        has = f"{len(qemu.machines)} machines, {len(qemu.cpu_models)} CPU models"
        yield f"QEMU:      {qemu.version} ({qemu.path}), {has}"
    yield f"libvirt:   {programs.libvirt or 'not found'}"


def parse_answers(emulator: Path, lines: Sequence[str]) -> Qemu:
    """Read what QEMU wrote. Raises ``LaunchError``."""
    answers = parse(emulator, lines)
    returned = answers.returned
    version = (returned.get(0) or {}).get("qemu")
    if version is None:
        raise LaunchError(f"{emulator}: did not say over QMP what it is")
    if unanswered := answers.missing(len(_QUESTIONS)):
        names = ", ".join(_QUESTIONS[at][0] for at in unanswered)
        raise LaunchError(f"{emulator}: did not answer over QMP to {names}")
    machines = returned.get(2) or []
    aliases = [{"name": each["alias"]} for each in machines if "alias" in each]
    last = len(_QUESTIONS) - 1
    options = {
        name: _names(returned.get(at) or [])
        for at, name in enumerate(_OPTIONS_OF, last - len(_OPTIONS_OF))
    }
    # One that is built without TCG has taken KVM, whose answers hold for this boot only.
    has_kvm = (returned.get(1) or {}).get("enabled") is True
    emulated = CpuAnswers() if has_kvm else cpu_answers(answers, _CPU_AT)
    return Qemu(
        path=str(emulator),
        version=".".join(str(version[part]) for part in ("major", "minor", "micro")),
        machines=_names([*machines, *aliases]),
        default_machine=next((each["name"] for each in machines if each.get("is-default")), None),
        cpu_models=_names(returned.get(_CPU_AT) or []),
        types=_names(returned.get(last - len(_OPTIONS_OF) - 2) or []),
        commands=_names(returned.get(last - len(_OPTIONS_OF) - 1) or []),
        options=options,
        io_uring="regular file" in answers.refused.get(last, ""),
        lacking=emulated.lacking,
        absent=tuple(sorted(emulated.absent)),
    )


def _names(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted(str(entry["name"]) for entry in entries))


def _ask_version(program: Path) -> str | None:
    try:
        done = bounded.run([program, "--version"], seconds=SECONDS)
    except OSError:
        return None
    found = _VERSION.search(done.stdout.decode(errors="replace"))
    return found[1] if found is not None else None


def _identity(emulator: Path) -> str:
    """Tell one binary from another: where it is, and what the file system says of it."""
    status = emulator.stat()
    parts = (
        _FORMAT,
        str(emulator.resolve()),
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _recall(file: Path) -> Qemu | None:
    try:
        document = json.loads(files.read(file, _MOST, owner=os.geteuid()))
        tables = {
            key: {name: tuple(names) for name, names in document.pop(key).items()}
            for key in ("options", "lacking")
        }
        lists = {name: tuple(value) for name, value in document.items() if isinstance(value, list)}
        return Qemu(**{**document, **lists, **tables})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # not there, or damaged: QEMU is asked again


def _remember(file: Path, qemu: Qemu) -> None:
    """Keep what QEMU said; where nothing can be kept it is asked the next time."""
    new = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        try:
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            new.write_text(json.dumps(attrs.asdict(qemu)))
            new.replace(file)
        finally:  # also when a signal comes in between
            new.unlink(missing_ok=True)
