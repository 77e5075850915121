"""The program that will run the VM: its version, and what it told of itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from attrs import field, frozen

Version = tuple[int, int]

OLDEST_QEMU: Final = (7, 2)
OLDEST_LIBVIRT: Final = (9, 0)


@frozen(kw_only=True)
class CpuAnswers:
    """A QEMU's answers under one accelerator (qapi/machine-target.json, qapi/misc-i386.json).

    Under KVM they hold for this host and its kernel as well.
    """

    lacking: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """The features of a named model that a guest would not get (``unavailable-features``)."""
    absent: frozenset[str] = frozenset()
    """The features that QEMU knows and that no guest can have."""
    cbitpos: int | None = None
    reduced_phys_bits: int | None = None
    """Of SEV (``query-sev-capabilities``); None: not told."""
    without_sev: str = ""
    """QEMU's words where it tells neither."""


@frozen(kw_only=True)
class Target:
    """A QEMU, and the libvirt that runs it; by default the oldest that kvmhooks knows."""

    qemu: Version = OLDEST_QEMU
    libvirt: Version | None = OLDEST_LIBVIRT
    """None: libvirt has no part in it."""
    told: frozenset[str] | None = None
    """QEMU's types and, as ``device.option``, options; None: only its version is known."""
    domain: frozenset[str] | None = None
    """The words of libvirt's domain capabilities (``libvirt.capabilities``); None: not asked.
    """
    io_uring: bool = False
    """QEMU can do I/O with io_uring, and the kernel lets it."""
    vhost_net: bool | None = None
    """The host's kernel has ``/dev/vhost-net``; None: not known."""
    runs_it: bool = False
    """The VM is there already: whatever it cannot be without, these programs have."""
    known: frozenset[str] = frozenset()
    """The names of features that they have for certain, whatever their versions are."""
    answers: Mapping[str, CpuAnswers] = field(factory=dict, hash=False)
    """QEMU's answers on CPUs, by accelerator; one that is not there was not asked."""


OLDEST: Final = Target()
"""The target to plan for where nothing is known of it."""

ITS_OWN: Final = Target(runs_it=True)
"""The target of a domain that some libvirt, of whatever version, has defined or runs."""


def parse_version(text: str) -> Version:
    """Return the first two numbers of a version such as ``9.0.0``. Raises ``ValueError``."""
    major, minor, *_ = [*text.split("."), "0"]
    if not f"{major}{minor}".isascii() or not major.isdigit() or not minor.isdigit():
        raise ValueError(f"found {text!r}, expected numbers with dots between them")
    return int(major), int(minor)


def told_by(types: Collection[str], options: Mapping[str, Collection[str]]) -> frozenset[str]:
    """Return what ``Target.told`` says of a QEMU with these types, and options of devices."""
    named = {f"{device}.{option}" for device, has in options.items() for option in has}
    return frozenset({*types, *named})


def version_text(version: Version) -> str:
    """Return the text, ``9.0``."""
    return ".".join(map(str, version))


def number_told(target: Target, name: str) -> int | None:
    """Return a number of libvirt's domain capabilities, of a target that libvirt is a part of."""
    start = f"{name}="
    words = () if target.libvirt is None else target.domain or ()
    texts = (word.removeprefix(start) for word in words if word.startswith(start))
    return next((int(text) for text in texts if text.isascii() and text.isdigit()), None)
