"""Programs that change the host behind a VM's back: irqbalance.

It has a socket in ``/run/irqbalance`` named after its process (irqbalance(1)); older ones only show
among the processes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

_SOCKET: Final = re.compile(r"irqbalance[1-9]\d{0,9}\.sock", re.ASCII)
_PROCESS: Final = re.compile(r"[1-9]\d{0,9}", re.ASCII)
_NAME: Final = "irqbalance"


def is_irqbalance_running(tree: Tree) -> bool | None:
    """Tell by the sockets of the living, else by all processes; None where none are shown."""
    sockets = tree.directory(f"run/{_NAME}")
    if sockets is not None:
        with sockets:
            numbers = [name[len(_NAME) : -len(".sock")] for name in sockets.names(_SOCKET)]
        if any(tree.text(f"proc/{number}/comm") == _NAME for number in numbers):
            return True
    proc = tree.directory("proc")
    if proc is None:
        return None
    with proc:
        names = [_name_of(proc, number) for number in proc.names(_PROCESS)]
    return _NAME in names if any(names) else None


def _name_of(proc: Directory, number: str) -> str | None:
    process = proc.child(number)
    if process is None:
        return None
    with process:
        return process.text("comm")
