"""A hook that dies at a chosen system call: strace kills it there."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from .lab import Lab

HOOK = "/etc/libvirt/hooks/qemu.d/kvmhooks"

CALLS = "write,renameat,unlink,unlinkat,sendto,sched_setaffinity,openat"
"""Those at which a hook may die: its changes to the host, and its reads of it in between."""

OPERATIONS = ("prepare", "start", "started", "release")

KILLER = f"""\
#!/bin/sh
if [ -e /root/moment.$2 ]; then
    kill=$(cat /root/moment.$2)
    rm /root/moment.$2
    exec strace -qq -o /root/calls.$2 -e trace={CALLS} -e inject=$kill /root/hook "$@"
fi
exec /root/hook "$@"
"""
"""In the hook's place: at one operation it dies at the system call that is asked for."""

MISSED = 2
"""So many moments of a start may not come: how many calls a hook makes depends on what runs beside
it, and a start whose hook lives on succeeds."""

Calls = dict[str, list[str]]
"""The system calls of each operation, in order."""


@contextmanager
def mortal(lab: Lab, live: Callable[[], None]) -> Iterator[Calls]:
    """Have a hook that can be killed while the context lasts; ``live`` is a guest's whole life."""
    lab.output(f"cp {HOOK} /root/hook")
    lab.put(HOOK, KILLER, mode=0o755)
    for operation in OPERATIONS:
        arm(lab, operation, "write:signal=SIGKILL:when=65535")
    live()
    yield {
        operation: lab.output(f"cut -d'(' -f1 /root/calls.{operation}").split()
        for operation in OPERATIONS
    }
    lab.output(f"mv /root/hook {HOOK}")


def drawn(
    calls: Mapping[str, Sequence[str]], operations: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """For each operation a random moment of it, always the same ones."""
    dice = random.Random(4)  # noqa: S311 -- any numbers, but the same ones each time
    for operation in operations:
        at = dice.randrange(len(calls[operation]))
        name = calls[operation][at]
        yield operation, f"{name}:signal=SIGKILL:when={calls[operation][: at + 1].count(name)}"


def arm(lab: Lab, operation: str, moment: str) -> None:
    """The next hook for this operation dies at this moment."""
    lab.output(f"echo '{moment}' > /root/moment.{operation}")


def has_come(lab: Lab, operation: str) -> bool:
    """Return whether the hook was called for that operation."""
    return lab.run(f"test -e /root/moment.{operation}").exit_code == 1
