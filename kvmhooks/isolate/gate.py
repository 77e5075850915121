"""Whether a hook call is any of our business: all that runs for a guest that is not ours.

libvirt holds the VM meanwhile, so this costs no more than the start of the interpreter: ``os`` is
all that is imported, and as the head of the installed file it is compiled anew each time.
"""

from __future__ import annotations

import os

MARK = b"urn:kvmhooks:1"
MAX_STDIN = 64 << 20
OURS = {"prepare begin", "start begin", "started begin", "release end", "reconnect begin"}
FILTERS = {"migrate begin", "restore begin"}
ANYBODYS = {"started begin", "release end", "reconnect begin"}


def concerns(argv: list[str], xml: bytes, root: str = "/") -> bool:
    """Whether GUEST OPERATION SUB-OPERATION EXTRA is for us.

    A guest is ours by its metadata or by a file of its name; others' are if claims live.
    """
    operation = " ".join(argv[1:3])
    if operation not in OURS | FILTERS or (root == "/" and os.geteuid() != 0):
        return False
    if exists(root, "etc/kvmhooks/disabled"):
        return False
    if MARK in xml or (operation in ANYBODYS and exists(root, "run/kvmhooks/state.json")):
        return True
    return "/" not in argv[0] and exists(root, f"etc/kvmhooks/vm.d/{argv[0]}.toml")


def exists(root: str, path: str) -> bool:
    """Whether something of this name is there; a link counts itself."""
    try:
        os.lstat(root.rstrip("/") + "/" + path)
    except (OSError, ValueError):  # too long, or with a null byte
        return False
    return True
