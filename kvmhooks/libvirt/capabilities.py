"""The features that libvirt has for a VM (https://libvirt.org/formatdomaincaps.html).

Its version tells what it knows; this tells what it has here: a TPM's emulator, virtiofs, SEV.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kvmhooks.errors import InputError, LaunchError
from kvmhooks.libvirt.edit.text import Element, parse
from kvmhooks.machine.cpu_model import MODELS, UNUSABLE
from kvmhooks.spec.model import VmSpec

_KINDS: Final = {"kvm": "kvm", "tcg": "qemu"}


def told_by(document: str | bytes, name: str = "domain capabilities") -> frozenset[str]:
    """Return what ``Target.domain`` says of a libvirt that gave this answer.

    ``devices/tpm/backendModel=emulator``, ``features/sev`` and ``features/sev/cbitpos=51`` are
    there, and with a ``?`` behind them the places of which something is told at all. Raises
    ``InputError``.
    """
    root = parse(document, name).root
    if root.tag != "domainCapabilities":
        raise InputError(f"{name}: found <{root.name[:40]}>, expected <domainCapabilities>")
    words = {word for child in root.children for word in _words(child, child.tag)}
    return frozenset(words.union(*map(_models, root.all("cpu/mode"))))


def _models(mode: Element) -> Iterator[str]:
    """Yield the named models of QEMU that libvirt takes, and those that this host lacks parts of.

    They are listed for the mode ``custom`` alone; ``usable`` is «no» where a model «cannot be used
    without disabling some features» (formatdomaincaps.html, CPU configuration).
    """
    if mode.get("name") != "custom":
        return
    for model in mode.all("model"):
        name = model.text.strip()
        yield f"{MODELS}={name}"
        if model.get("usable") == "no":
            yield f"{UNUSABLE}={name}"


def _words(element: Element, at: str) -> Iterator[str]:
    supported = element.get("supported")
    if supported is not None:
        yield f"{at}?"
        if supported == "yes":
            yield at
    for child in element.children:
        if not child.children and child.text.strip():
            yield f"{at}/{child.tag}={child.text.strip()}"
        if child.tag != "enum":
            yield from _words(child, f"{at}/{child.tag}")
            continue
        place = f"{at}/{child.get('name', '')}"
        yield f"{place}?"
        yield from (f"{place}={value.text.strip()}" for value in child.all("value"))


def ask(connection: Any, spec: VmSpec) -> frozenset[str]:
    """Ask the libvirtd of a connection for the VM of ``spec``. Raises ``LaunchError``."""
    import libvirt  # noqa: PLC0415 -- an extra

    emulator = spec.machine.emulator
    kind = _KINDS.get(spec.machine.accel)
    try:
        xml = connection.getDomainCapabilities(
            None if emulator is None else str(emulator), "x86_64", spec.machine.type, kind, 0
        )
    except libvirt.libvirtError as error:
        raise LaunchError(f"--libvirt: its domain capabilities: {error}") from error
    return told_by(xml)
