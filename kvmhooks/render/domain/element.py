"""One way to write an element."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from lxml import etree

Element: TypeAlias = etree._Element  # noqa: SLF001 -- lxml has no public name for it


def element(
    tag: str,
    attributes: Mapping[str, object] | None = None,
    children: Iterable[Element] = (),
    *,
    text: object = None,
) -> Element:
    """An element with its attributes (those that are None left out), children and text."""
    said = {key: str(value) for key, value in (attributes or {}).items() if value is not None}
    made = etree.Element(tag, said)
    made.extend(children)
    if text is not None:
        made.text = str(text)
    return made


def on_off(flag: bool) -> str:  # noqa: FBT001 -- it is the value that is written
    """Libvirt's and QEMU's ``on`` and ``off``."""
    return "on" if flag else "off"


def yes_no(flag: bool) -> str:  # noqa: FBT001 -- it is the value that is written
    """Libvirt's ``yes`` and ``no``."""
    return "yes" if flag else "no"
