"""How a follower is started, and whether it runs.

Where there is systemd it is a transient service: no child of libvirtd, whose AppArmor profile it
would inherit, and started again if it fails. Elsewhere it is a process of its own, with nothing of
the hook's: libvirt waits until the last descriptor of its pipes is closed.
"""

from __future__ import annotations

import sys

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.state import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmhooks.isolate.keeper import Keeper
    from kvmhooks.isolate.state import Held

_PROGRAM: Final = (
    "import sys; sys.path.insert(0, {path!r}); from kvmhooks.isolate.hook import command; "
    "sys.exit(command(sys.argv[1:]))"
)


def needs_follower(held: Held | None) -> bool:
    """Whether a claim is one of a running VM that owns CPUs."""
    return held is not None and held.state == RUNNING and bool(held.claim.exclusive)


def ensure(keeper: Keeper, key: str, program: Sequence[str] = ()) -> None:
    """Start the follower of a claim that needs one and has none.

    ``program`` runs the hook: its installed file, or this interpreter with this package. That there
    is none is no reason to fail: it is logged, and `status` says it.
    """
    door = keeper.door
    held = keeper.look().held.get(key)
    if held is None or not needs_follower(held):
        return
    if held.follower is not None and held.follower.is_alive(door):
        return
    words = [*(program or this_package())]
    words += [*(() if door.is_real else ("--root", door.root)), "--follow", key]
    systemd = door.systemd()
    try:
        if systemd is None:
            door.detach(words)
            return
        with systemd:
            systemd.start_service(unit_of(key), words, about=f"kvmhooks follows {held.claim.name}")
    except (IsolationError, OSError) as error:
        door.log(f"{held.claim.name}: no follower: {error}", severity=4)


def unit_of(key: str) -> str:
    """The name of a follower's unit; a key is safe in it."""
    return f"kvmhooks-follow-{key}.service"


def this_package() -> list[str]:
    """Words that run the hook with this interpreter and this package, whatever the environment."""
    path = __file__.rpartition("/kvmhooks/isolate/")[0]
    return [sys.executable, "-I", "-S", "-c", _PROGRAM.format(path=path)]
