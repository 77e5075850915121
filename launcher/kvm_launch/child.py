"""What becomes QEMU: a process that waits at a gate until it is where it belongs.

It is run as a program of its own, with nothing but the standard library::

    python3 -I -S child.py GATE PARENT PRIVILEGES IDS PROGRAM ARGUMENT…

``GATE`` is a descriptor: one byte on it lets the program run, its end does not. So QEMU is in its
control groups before its first instruction, and all its memory is charged there. ``IDS`` is
``UID:GID:GROUP,GROUP`` to become that user for good, or empty; with ``PRIVILEGES`` ``keep`` the
program's own programs may be setuid, with ``drop`` they gain nothing (``no_new_privs``). When
``PARENT`` dies, however that happens, QEMU gets SIGTERM, at which it writes its disks out and quits
(``os_setup_signal_handling()``, os-posix.c): nobody would follow it, or restore the host after it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): sent when the thread that forked us ends; a change of ids resets it, and an execve of
what is setuid."""

PR_SET_NO_NEW_PRIVS = 38

NOT_STARTED = 127
"""The exit status when the program could not be run, as a shell's."""


def main(argv: list[str]) -> int:
    """Wait at the gate, then become the program; return only if that does not come to pass."""
    gate, parent, privileges, ids, *command = argv
    opened = os.read(int(gate), 1)
    os.close(int(gate))
    if not opened:
        return NOT_STARTED
    try:
        if ids:
            _become(*ids.split(":"))
        if privileges == "drop":
            prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before it could be told
            return NOT_STARTED
        os.execv(command[0], command)  # noqa: S606 -- no shell on purpose
    except OSError as error:
        print(f"{error.filename or command[0]}: {error.strerror}", file=sys.stderr)
    return NOT_STARTED


def _become(uid: str, gid: str, groups: str) -> None:
    os.setgroups([int(group) for group in groups.split(",")])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process, for which Python has no function. Raises ``OSError``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl {option}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
