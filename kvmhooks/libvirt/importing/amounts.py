"""Amounts of memory in libvirt's units."""

from __future__ import annotations

from typing import Final

from kvmhooks.errors import Problem, SpecError
from kvmhooks.libvirt.edit.text import Element

_UNITS: Final = {
    "b": 1, "bytes": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "k": 1 << 10, "KiB": 1 << 10, "M": 1 << 20, "MiB": 1 << 20,
    "G": 1 << 30, "GiB": 1 << 30, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip
"""libvirt's units of memory (``virScaleInteger()``, src/util/virutil.c)."""


def size_of(element: Element | None) -> int:
    """Return the bytes that an element with a unit says. Raises ``SpecError`` with its place."""
    if element is None:
        return 0
    return amount(element, element.text.strip(), element.get("unit") or "KiB")


def amount(element: Element, text: str, unit: str) -> int:
    """Return a number with libvirt's unit, in bytes. Raises ``SpecError`` with its place."""
    if unit not in _UNITS or not (text.isascii() and text.isdigit() and len(text) < 20):
        problem = Problem(element.path, repr(f"{text} {unit}"[:80]), "a number with a unit")
        raise SpecError("domain", (problem,))
    return int(text) * _UNITS[unit]
