"""The fast path: whether a hook call concerns us; all that runs for a guest that is not ours.

libvirt holds the VM meanwhile, so this costs no more than the start of the interpreter: ``os`` is
all that is imported, and as the head of the installed file it is compiled anew each time.
"""

from __future__ import annotations

import os

MARK = b"urn:kvmhooks:1"
MAX_STDIN = 64 << 20
PATIENCE = 5.0
"""Seconds for the XML to come: libvirt has it ready, and holds the VM until the hook has ended."""

OURS = {"prepare begin", "start begin", "started begin", "release end", "reconnect begin"}
FILTERS = {"migrate begin", "restore begin"}
ANYBODYS = {"started begin", "release end", "reconnect begin"}


def read_xml(descriptor: int = 0) -> bytes:
    """Return what comes on stdin, as far as it does in time; nothing where that is closed."""
    from select import select  # noqa: PLC0415 -- both are in the interpreter itself
    from time import monotonic  # noqa: PLC0415

    xml, until = bytearray(), monotonic() + PATIENCE
    try:
        while len(xml) < MAX_STDIN and (left := until - monotonic()) > 0:
            part = select([descriptor], (), (), left)[0] and os.read(descriptor, 1 << 18)
            if not part:
                break
            xml += part
    except OSError:
        return bytes(xml)
    return bytes(xml)


def concerns(argv: list[str], xml: bytes, root: str = "/") -> bool:
    """Return whether GUEST OPERATION SUB-OPERATION EXTRA is for us.

    A guest is ours by its metadata or by a file of its name; others' are if claims live.
    """
    operation = " ".join(argv[1:3])
    if operation not in OURS | FILTERS or (root == "/" and os.geteuid() != 0):
        return False
    if is_disabled(root):
        return False
    if operation in ANYBODYS and exists(root, "run/kvmhooks/state.json"):
        return True
    return MARK in xml or is_named(argv[0], root)


def is_disabled(root: str) -> bool:
    """Return whether the administrator has switched everything off."""
    return exists(root, "etc/kvmhooks/disabled")


def is_named(guest: str, root: str = "/") -> bool:
    """Return whether the administrator has a file for a guest of this name."""
    return "/" not in guest and exists(root, f"etc/kvmhooks/vm.d/{guest}.toml")


def exists(root: str, path: str) -> bool:
    """Return whether something of this name is there; a link counts itself."""
    try:
        os.lstat(root.rstrip("/") + "/" + path)
    except (OSError, ValueError):  # too long, or with a null byte
        return False
    return True
