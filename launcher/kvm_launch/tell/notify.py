"""The messages to a service manager (sd_notify(3)): none where none asks for them."""

from __future__ import annotations

import os
import socket
from typing import Final

SECONDS: Final = 1.0


class ServiceManager:
    """The manager that started us as a service of ``Type=notify``, if one did.

    Its socket's name is the one environment variable that is looked at for root as well: only the
    state of the VM is sent there. QEMU does not get it.
    """

    def __init__(self) -> None:
        self._path = os.environ.pop("NOTIFY_SOCKET", "")

    @property
    def is_there(self) -> bool:
        """Somebody asks."""
        return bool(self._path)

    def tell(self, **fields: str | int) -> None:
        """Send fields such as ``READY=1``. One who does not listen is no reason to fail.

        Nor is it waited for longer than ``SECONDS``: a socket holds ten messages that nobody
        takes (``net.unix.max_dgram_qlen``).
        """
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(SECONDS)
            try:
                peer.sendto(message.encode(), address)
            except OSError:
                return
