"""What becomes QEMU: a process that waits at a gate until it is where it belongs.

It is run as a program of its own, with nothing but the standard library::

    python3 -I -S child.py GATE PARENT PROGRAM ARGUMENT…

``GATE`` is a descriptor: one byte on it lets the program run, its end does not. So QEMU is in its
control groups before its first instruction, and all its memory is charged there. When ``PARENT``
dies, however that happens, QEMU gets SIGTERM, at which it writes its disks out and quits
(``os_setup_signal_handling()``, os-posix.c): nobody would follow it, or restore the host after it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): sent when the thread that forked us ends; kept over an execve of what is not setuid."""

NOT_STARTED = 127
"""The exit status when the program could not be run, as a shell's."""


def main(argv: list[str]) -> int:
    """Wait at the gate, then become the program; return only if that does not come to pass."""
    gate, parent, *command = argv
    opened = os.read(int(gate), 1)
    os.close(int(gate))
    if not opened:
        return NOT_STARTED
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        return _failed(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):  # it died before it could be told
        return NOT_STARTED
    try:
        os.execv(command[0], command)  # noqa: S606 -- no shell on purpose
    except OSError as error:
        return _failed(f"{command[0]}: {error.strerror}")


def _failed(why: str) -> int:
    print(why, file=sys.stderr)
    return NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
