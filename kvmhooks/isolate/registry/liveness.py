"""The process that a claim lives as long as: the daemon while it is pending, then its QEMU."""

from __future__ import annotations

from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.isolate.registry.transaction import mark_pending
from kvmhooks.isolate.system.process_stat import PARENT, Process, fields_of, name_of
from kvmhooks.isolate.vm.cgroups import LIBVIRT, libvirt_pid, sweep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmhooks.isolate.record.state import Held, State
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.system.system import System

DAEMONS: Final = ("libvirtd", "virtqemud")


def drop_dead(system: System, store: Store, state: State, but: str = "") -> bool:
    """Drop the claims whose VM is gone, and tell whether there were any."""
    ended = store.released() if state.held else set()
    held = [(key, vm) for key, vm in state.held.items() if key != but]
    dead = [key for key, vm in held if not is_live(system, vm, ended)]
    for key in dead:
        gone = state.held.pop(key)
        mark_pending(state, gone)
        if gone.claim.driver != LIBVIRT:
            sweep(system)
    return bool(dead)


def is_live(system: System, held: Held, ended: set[str]) -> bool:
    """Return whether a VM lives: if it runs as its QEMU, if pending as its daemon or its QEMU.

    ``ended`` are the keys of those that were released.
    """
    if held.claim.key in ended:
        return False
    if held.holder.is_alive(system):
        return True
    if held.state == RUNNING:
        return False
    pid = libvirt_pid(system, held.claim)
    return bool(pid) and Process.find(system, pid) is not None


def adopt(system: System, held: Held, pid: int) -> None:
    """Let the claim live from now on as long as QEMU does."""
    process = Process.find(system, pid or libvirt_pid(system, held.claim))
    if process is not None:
        held.holder, held.state = process, RUNNING


def daemon(system: System) -> Process:
    """Return the daemon that runs us: our parent, or above it where a script calls the hook."""
    pid = parent = system.parent()
    for _ in range(4):
        try:
            text = system.read(f"proc/{pid}/stat")
        except OSError:
            break
        if name_of(text) in DAEMONS:
            parent = pid
            break
        pid = int(fields_of(text)[PARENT])
    return Process.find(system, parent) or Process(parent, 0)
