"""An element of a domain's XML, to be written: a value, so that no library of XML is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from kvmhooks.machine.pci_layout import GuestPciAddress


@frozen
class Element:
    """An element with its attributes, children and text."""

    tag: str
    """The name; ``{namespace}name`` for one of a name space."""
    attributes: Mapping[str, str]
    children: tuple[Element, ...] = ()
    text: str | None = None
    namespaces: Mapping[str, str] = field(factory=dict)
    """The prefixes of name spaces that are declared here."""


def element(
    tag: str,
    attributes: Mapping[str, object] | None = None,
    children: Iterable[Element] = (),
    *,
    text: object = None,
    namespaces: Mapping[str, str] | None = None,
) -> Element:
    """Return an element with its attributes (those that are None left out), children and text."""
    texts = {key: str(value) for key, value in (attributes or {}).items() if value is not None}
    content = None if text is None else str(text)
    return Element(tag, texts, tuple(children), content, namespaces or {})


def pci_address(place: GuestPciAddress) -> Element:
    """Return a device's address in the guest."""
    return element(
        "address",
        {
            "type": "pci",
            "domain": "0x0000",
            "bus": f"{place.bus:#04x}",
            "slot": f"{place.slot:#04x}",
            "function": f"{place.function:#x}",
            "multifunction": "on" if place.announces_others else None,
        },
    )


def on_off(flag: bool) -> str:  # noqa: FBT001 -- it is the value that is written
    """Return libvirt's and QEMU's ``on`` and ``off``."""
    return "on" if flag else "off"


def yes_no(flag: bool) -> str:  # noqa: FBT001 -- it is the value that is written
    """Return libvirt's ``yes`` and ``no``."""
    return "yes" if flag else "no"
