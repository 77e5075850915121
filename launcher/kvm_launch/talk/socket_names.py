"""The sockets of a VM's run directory, by their names: today's, and those of versions before.

No name is ever given to another thing, as supervisors run on while kvm-launch is upgraded. A
supervisor of before has only the older name; today's links it to the socket, so a client of before
finds either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmhooks.errors import LaunchError
from kvmhooks.qemu.run_dir import made

if TYPE_CHECKING:
    from pathlib import Path

QMP: Final = "qmp.sock"
"""QEMU's monitor that is the supervisor's."""

QMP_USER: Final = "qmp-user.sock"
"""QEMU's second monitor, for ``kvm-launch qmp``."""

SUPERVISE: Final = "supervise.sock"
"""The requests of the VM's owner to its supervisor."""

CONSOLE: Final = "console.sock"

AGENT: Final = "agent.sock"
"""The guest's agent."""

INCOMING: Final = "incoming.sock"
"""A guest that comes from another QEMU."""

OLDER: Final = {QMP_USER: "control.sock", SUPERVISE: "supervisor.sock"}
"""The names that two of them had in b52323f and in each version before."""


def link_older(path: Path) -> None:
    """Give a socket its older name as well. Raises ``LaunchError``."""
    older = path.with_name(OLDER[path.name])
    with made(older):
        older.symlink_to(path.name)


def path_of(directory: Path, name: str) -> Path:
    """Return where a socket of a VM that runs is: at its older name where there is no other."""
    path, older = directory / name, directory / OLDER[name]
    return older if older.exists() and not path.exists() else path


def missing(directory: Path, name: str, *reasons: str) -> LaunchError:
    """Return the error for a VM that runs and whose socket is not in its run directory."""
    if not directory.exists():
        return LaunchError(f"{directory.name}: the VM has ended")
    why = ", ".join(("it is only starting or about to end", *reasons))
    return LaunchError(
        f"{directory.name}: found no {name} in {directory}, expected the socket of a VM that runs: "
        f"{why}, or somebody has removed it"
    )
