"""The interfaces that the host's network needs: default routes, addresses, bridges.

``/proc/net/route`` and ``/proc/net/ipv6_route`` are those of proc(5): the main table only. An
interface that is below another (a bridge's port, a bond's member, a VLAN's parent) has a link
``upper_NAME`` to it (Documentation/ABI/testing/sysfs-class-net).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.devices.uses import Use
from kvmhooks.host.files.formats import split_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.host.files.tree import Tree

_NET: Final = "sys/class/net"
_ROUTES: Final = "proc/net/route"
_ROUTES6: Final = "proc/net/ipv6_route"
_NAME: Final = re.compile(r"[^/\s]{1,15}")
_UPPER: Final = re.compile(r"upper_([^/\s]{1,15})")
_LIMIT: Final = 16 << 20
_LAYERS: Final = 8
_REJECT: Final = 0x0200
"""``RTF_REJECT`` (linux/route.h): the kernel's own «no route»."""


def read_network_uses(tree: Tree) -> dict[str, tuple[Use, ...]]:
    """Return the uses of each interface, with those of all that is above it."""
    uppers, bridges = _read_uppers(tree)
    defaults, routed = _read_routes(tree)
    return {
        name: uses
        for name in uppers
        if (uses := tuple(_uses_of(name, uppers, bridges, defaults, routed)))
    }


def _read_uppers(tree: Tree) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Return what is above each interface, and which are bridges."""
    uppers: dict[str, tuple[str, ...]] = {}
    bridges: set[str] = set()
    directory = tree.directory(_NET)
    if directory is None:
        return uppers, bridges
    with directory:
        for name in directory.names(_NAME):
            entry = directory.child(name)
            if entry is None:
                continue
            with entry:
                uppers[name] = tuple(each.removeprefix("upper_") for each in entry.names(_UPPER))
            if tree.has(f"{_NET}/{name}/bridge"):
                bridges.add(name)
    return uppers, bridges


def _read_routes(tree: Tree) -> tuple[dict[str, str], set[str]]:
    """Return the interfaces of default routes, with their file, and those of any route."""
    defaults: dict[str, str] = {}
    routed: set[str] = set()
    for line in tree.lines(_ROUTES, _LIMIT):
        words = split_words(line)
        if len(words) < 8 or words[0] == "Iface":
            continue
        routed.add(words[0])
        if words[1] == words[7] == "00000000":
            defaults[words[0]] = f"/{_ROUTES}"
    for line in tree.lines(_ROUTES6, _LIMIT):
        words = split_words(line)
        if len(words) < 10 or words[9] == "lo" or _is_reject(words[8]):
            continue
        if not words[0].startswith(("fe80", "ff")):
            routed.add(words[9])
        if words[1] == "00" and not words[0].strip("0"):
            defaults.setdefault(words[9], f"/{_ROUTES6}")
    return defaults, routed - {"lo"}


def _is_reject(flags: str) -> bool:
    """Return whether a route is none; what is no number, in a damaged tree, rejects nothing."""
    try:
        return bool(int(flags, 16) & _REJECT)
    except ValueError:
        return False


def _uses_of(
    name: str,
    uppers: dict[str, tuple[str, ...]],
    bridges: set[str],
    defaults: dict[str, str],
    routed: set[str],
) -> Iterator[Use]:
    above = _above(name, uppers)
    for interface in (name, *above):
        through = "" if interface == name else f" through {interface}"
        if interface in defaults:
            yield Use("route", name, f"carries the default route{through}", defaults[interface])
        elif routed and routed <= {name, *above} and interface in routed:
            what = f"carries the only address of this host{through}"
            yield Use("route", name, what, f"/{_ROUTES}")
    for interface in above:
        if interface in bridges:
            yield Use(
                "bridge", name, f"is a port of {interface}", f"/{_NET}/{name}/upper_{interface}"
            )


def _above(name: str, uppers: dict[str, tuple[str, ...]]) -> list[str]:
    """Return all that is above an interface, the nearest first.

    The kernel allows eight layers (``MAX_NEST_DEV``, linux/netdevice.h): there are few.
    """
    found = {name: None}
    layer = [name]
    for _ in range(_LAYERS):
        above = dict.fromkeys(upper for below in layer for upper in uppers.get(below, ()))
        layer = [upper for upper in above if upper not in found]
        found |= dict.fromkeys(layer)
    return list(found)[1:]
