"""The start of processes of ours: a VM's follower, and the one that waits for what is owed.

Where there is systemd it is a transient service: no child of libvirtd, whose AppArmor profile it
would inherit, and started again if it fails or is killed. Elsewhere it is a process of its own,
with nothing of the hook's: libvirt waits until the last descriptor of its pipes is closed.
"""

from __future__ import annotations

import sys

from kvmhooks.errors import IsolationError, words_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmhooks.isolate.registry.registry import Registry
    from kvmhooks.isolate.system.system import System

_RECORD: Final = "run/kvmhooks"

_PROGRAM: Final = (
    "(lambda sys: sys.path.insert(0, {path!r}) or sys.exit(__import__('kvmhooks.isolate.hook', "
    "fromlist=['hook']).command(sys.argv[1:])))(__import__('sys'))"
)
"""One expression: of a transient unit systemd 252 writes ``;`` as ``\\;``, and reads that as two
characters at a ``daemon-reload``, so that a follower which is started again would fail."""


WAITER: Final = "kvmhooks-owed.service"
_EXISTS: Final = "UnitExists"
"""systemd's error for a name that is in use (``BUS_ERROR_UNIT_EXISTS``, bus-common-errors.h)."""

_TRIES: Final = 10
_PAUSE: Final = 0.1
"""Seconds between two tries; a unit that is there for longer is one that waits to be restarted."""


def ensure(registry: Registry, key: str, program: Sequence[str] = ()) -> None:
    """Start the follower of a claim that needs one and has none.

    ``program`` runs the hook: its installed file, or this interpreter with this package. A
    missing follower is no reason to fail: it is logged, and `status` says it.
    """
    system = registry.system
    held = registry.look().held.get(key)
    if held is None or not held.needs_follower:
        return
    if held.follower is not None and held.follower.is_alive(system):
        return
    try:
        _start(
            system,
            unit_of(key),
            [*(program or this_package()), *_root_of(system), "--follow", key],
            about=f"kvmhooks follows {held.claim.name}",
        )
    except (IsolationError, OSError) as error:
        system.log(f"{held.claim.name}: no follower: {words_of(error)}", severity=4)


def await_owed(registry: Registry, program: Sequence[str] = ()) -> None:
    """Have a process give back what is owed as soon as it can be, unless one waits already.

    A systemd that does not answer in time, as one that reads all its units again on a busy host,
    is done without. ``program`` is as in ``ensure``. Raises ``IsolationError`` or ``OSError``.
    """
    system = registry.system
    if registry.waiter() is not None:
        return
    words = [*(program or this_package()), *_root_of(system), "--settle"]
    for _ in range(_TRIES):
        try:
            _start(system, WAITER, words, about="kvmhooks gives back what stopped VMs have left")
        except IsolationError as error:
            if _EXISTS not in str(error):
                system.log(f"{WAITER}: {error}: a process of its own waits instead", severity=4)
                system.detach(words)
                return
        else:
            return
        system.sleep(_PAUSE)  # it has done its work and is about to go, or is about to run
        if registry.waiter() is not None:
            return


def _start(system: System, unit: str, words: Sequence[str], *, about: str) -> None:
    systemd = system.systemd()
    if systemd is None:
        system.detach([*words])
        return
    with systemd:
        systemd.start_service(unit, words, about=about)


def _root_of(system: System) -> tuple[str, ...]:
    return () if system.is_real else ("--root", system.root)


def is_starting(system: System, key: str) -> bool:
    """Return whether a follower of a claim exists that is not on record yet.

    Its command line tells, of a process of the record's own owner: anybody may call his so.
    """
    words = ["--follow", key]
    for name in system.names("proc"):
        if name.isascii() and name.isdigit():
            try:
                command = system.read(f"proc/{name}/cmdline").removesuffix("\0").split("\0")
                is_ours = command[-2:] == words and system.owner(f"proc/{name}") == system.owner(
                    _RECORD
                )
            except OSError:  # it ended
                continue
            if is_ours:
                return True
    return False


def unit_of(key: str) -> str:
    """Return the name of a follower's unit; a key is safe in it."""
    return f"kvmhooks-follow-{key}.service"


def this_package() -> list[str]:
    """Return words that run the hook with this interpreter and package in any environment."""
    path = __file__.rpartition("/kvmhooks/isolate/")[0]
    return [sys.executable, "-I", "-S", "-c", _PROGRAM.format(path=path)]
