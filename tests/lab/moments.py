"""A hook that dies at a chosen system call: strace kills it there."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import isolated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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
"""So many moments of a whole test may not come: how many calls a hook makes depends on what runs
beside it."""

Calls = dict[str, list[str]]
"""The system calls of each operation, in order."""


def deaths(lab: Lab, path: str, operations: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Have the hook of the guest "a" die at a random moment of each operation, one after another.

    Each is yielded once the guest, which ``path`` defines, is gone again. A hook that was killed
    fails its guest's start; one whose moment did not come fails nothing.
    """
    missed = []
    with _mortal(lab, path) as calls:
        for operation, name, count in _drawn(calls, operations):
            moment = f"{name}:signal=SIGKILL:when={count}"
            _arm(lab, operation, moment)
            created = lab.run(f"virsh -q create {path}", seconds=180)
            has_started = created.exit_code == 0
            if has_started:
                isolated.stop(lab, "a")
            waiting = lab.run(f"test -e /root/moment.{operation}").exit_code == 0
            assert not waiting, "the hook was not called"
            is_killed = _made(lab, operation).count(name) >= count
            assert has_started is (operation == "release" or not is_killed), (moment, created)
            if not is_killed:
                missed.append(f"{operation}: {moment}")
            yield operation, moment
    assert len(missed) <= MISSED, missed


@contextmanager
def _mortal(lab: Lab, path: str) -> Iterator[Calls]:
    """Have a hook that can be killed while the context lasts; the first life is a whole one."""
    lab.output(f"cp {HOOK} /root/hook")
    lab.put(HOOK, KILLER, mode=0o755)
    for operation in OPERATIONS:
        _arm(lab, operation, "write:signal=SIGKILL:when=65535")
    lab.output(f"virsh -q create {path}", seconds=180)
    isolated.stop(lab, "a")
    yield {operation: _made(lab, operation) for operation in OPERATIONS}
    lab.output(f"mv /root/hook {HOOK}")


def _drawn(
    calls: Mapping[str, Sequence[str]], operations: Iterable[str]
) -> Iterator[tuple[str, str, int]]:
    """For each operation a call of it, always the same ones: its name, and the how manieth."""
    dice = random.Random(4)  # noqa: S311 -- any numbers, but the same ones each time
    for operation in operations:
        at = dice.randrange(len(calls[operation]))
        name = calls[operation][at]
        yield operation, name, calls[operation][: at + 1].count(name)


def _arm(lab: Lab, operation: str, moment: str) -> None:
    """The next hook for this operation dies at this moment."""
    lab.output(f"echo '{moment}' > /root/moment.{operation}")


def _made(lab: Lab, operation: str) -> list[str]:
    """The calls that the last hook for an operation made, the one at which it died included."""
    return lab.output(f"cut -d'(' -f1 /root/calls.{operation}").split()
