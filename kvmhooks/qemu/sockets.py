"""The places of the sockets of a VM's helpers, when libvirt does not choose.

Helpers such as virtiofsd and swtpm are started before QEMU, with these paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from kvmhooks.machine.helper_sockets import helper_socket
from kvmhooks.placement.model import Plan


def socket_of(plan: Plan, what: str) -> str:
    """Return the path of one socket: ``fs0``, ``tpm`` or ``agent``."""
    return helper_socket(plan.name, what)


def inherited(argv: Iterable[str], plan: Plan, descriptors: Mapping[str, int]) -> list[str]:
    """Return QEMU's arguments ``argv`` with sockets by their numbers instead of their paths.

    ``descriptors`` are open sockets by their names. Raises ``ValueError`` for one that no argument
    names (``fd`` of ``-chardev socket``; ``SocketAddress``, qapi/sockets.json).
    """
    words = list(argv)
    for what, descriptor in descriptors.items():
        path = socket_of(plan, what)
        address = _json({"type": "unix", "path": path})
        named = [
            (index, old, new)
            for index, word in enumerate(words)
            for old, new in (
                (f"path={path}", f"fd={descriptor}"),
                (address, _json({"type": "fd", "str": str(descriptor)})),
            )
            if old in (word.split(",") if "=" in old else word)
        ]
        if len(named) != 1:
            raise ValueError(f"{path}: found in {len(named)} of QEMU's arguments, expected one")
        index, old, new = named[0]
        words[index] = words[index].replace(old, new)
    return words


def _json(value: dict[str, str]) -> str:
    return json.dumps(value, separators=(",", ":"))
