"""The host's own use of its displays: the text console, and screens that are on.

``/sys/class/vtconsole`` (Documentation/ABI/testing/sysfs-class-vtconsole) says which drivers the
virtual terminals use; a connector of ``/sys/class/drm`` says whether it is driven now.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.devices.uses import Use
from kvmhooks.host.files.addresses import last_address

if TYPE_CHECKING:
    from kvmhooks.host.files.tree import Tree

_CONSOLES: Final = "sys/class/vtconsole"
_DRM: Final = "sys/class/drm"
_CONSOLE: Final = re.compile(r"vtcon\d{1,3}", re.ASCII)
_CONNECTOR: Final = re.compile(r"(card\d{1,3})-([A-Za-z0-9-]{1,40})", re.ASCII)


def read_boot_display(tree: Tree) -> tuple[Use, ...]:
    """Return the text console, if it is bound to a display: to that on which the firmware was."""
    directory = tree.directory(_CONSOLES)
    if directory is None:
        return ()
    with directory:
        for name in directory.names(_CONSOLE):
            at = f"{_CONSOLES}/{name}"
            driver = tree.text(f"{at}/name") or ""
            if tree.text(f"{at}/bind") == "1" and "dummy" not in driver:
                return (Use("console", name, f"is the active console ({driver})", f"/{at}/bind"),)
    return ()


def read_display_uses(tree: Tree) -> dict[str, tuple[Use, ...]]:
    """Return the screens that are on, by the PCI address of their display."""
    uses: dict[str, tuple[Use, ...]] = {}
    directory = tree.directory(_DRM)
    if directory is None:
        return uses
    with directory:
        for name in directory.names(_CONNECTOR):
            if tree.text(f"{_DRM}/{name}/enabled") != "enabled":
                continue
            card = name.partition("-")[0]
            address = last_address(directory.link(card) or "") or _device_of(tree, card)
            if address is not None:
                at = f"/{_DRM}/{name}/enabled"
                use = Use("screen", card, f"drives the screen at {name.partition('-')[2]}", at)
                uses[address] = (*uses.get(address, ()), use)
    return uses


def _device_of(tree: Tree, card: str) -> str | None:
    directory = tree.directory(f"{_DRM}/{card}")
    if directory is None:
        return None
    with directory:
        return last_address(directory.link("device") or "")
