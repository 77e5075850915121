"""One process while something of the host is owed: it tries until all is given back, and ends.

A stopped VM leaves what could not be given back at that moment: the kernel keeps a CPU that is
offline out of every task's mask (``__sched_setaffinity()``, kernel/sched/core.c), so that kthreadd,
and with it each kernel thread to come, would stay off that CPU for good; irqbalance takes up a ban
at its next scan; a hook may have run out of time. All of it is on record. So whoever leaves it
starts this process, unless it runs already, and it calls the registry as a hook does: at once, when
a CPU has come online, and in between at growing intervals. It may be killed at any moment, and may
be missing: the next hook does the same.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import KvmhooksError
from kvmhooks.isolate.hook import fastpath
from kvmhooks.isolate.hook.events import Events
from kvmhooks.isolate.hook.telling import words_of
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST: Final = 1.0
"""Seconds until the next attempt after one that came nearer, and after a CPU has come online: the
kernel tells of it before its CPU sets know it (``cpuset_hotplug_workfn()`` runs later)."""

LAST: Final = 300.0
"""Seconds between two attempts at most; each interval is twice the one before, up to this."""

POLLED: Final = 10.0
"""Seconds between two looks at the record and the CPUs where nothing tells of a change."""

_STATE: Final = "run/kvmhooks"
_ONLINE: Final = "sys/devices/system/cpu/online"


def wait_for_release(root: str, planner: Sequence[str] = ()) -> int:
    """Wait until nothing is owed any more. Return the exit code."""
    gc.enable()  # the installed hook switches it off: most of its calls end at once
    system = System(root)
    registry = Registry(system, Store(root), helper=planner)
    try:
        registry.look()
    except KvmhooksError as error:
        sys.stderr.write(f"kvmhooks: {error}\n")
        return 0  # by such a record nobody can: systemd must not try again and again
    try:
        return Waiter(system, registry).run()
    except (KvmhooksError, OSError, ValueError) as error:  # the record was damaged meanwhile
        system.log(f"owed: {words_of(error)}", severity=4)
        return 1
    finally:
        registry.store.close()


class Waiter:
    """The process that waits on one host."""

    def __init__(self, system: System, registry: Registry) -> None:
        self.system = system
        self.registry = registry
        pid = os.getpid()
        self.me = Process.find(system, pid) or Process(pid, 0)
        self.events = self._events(pid)
        self.interval = FIRST
        self.due = system.now()
        self.left = self._left()
        self.online = self._online()

    def run(self) -> int:
        """Try and wait, until nothing is owed or somebody else waits for it."""
        if self.system.is_real:
            os.setpriority(os.PRIO_PROCESS, 0, 10)
        while not fastpath.is_disabled(self.system.root):
            if self.system.now() >= self.due and self._is_done():
                break
            self._wait(max(self.due - self.system.now(), 0))
            state = self.registry.look()
            if not (state.held or state.is_owed):  # somebody else has given it back
                self.due = self.system.now()
            elif self.online != (online := self._online()):
                self.online = online
                self._hasten()
        return 0

    def _events(self, pid: int) -> Events | None:
        """Return what wakes it besides the time; None where that is not to be had (EMFILE)."""
        try:
            events = Events(self.system, pid)
            events.watch(_STATE)
            events.listen()
        except OSError as error:
            self.system.log(
                f"owed: it is looked at by the clock alone: {words_of(error)}", severity=4
            )
            return None
        return events

    def _wait(self, seconds: float) -> None:
        if self.events is None:
            self.system.sleep(min(seconds, POLLED))
        else:
            self.events.wait(seconds)

    def _is_done(self) -> bool:
        """Try, and plan the next attempt; return whether none is needed, or not of ours."""
        try:
            report = self.registry.release_pending(self.me)
            if report is None or self.registry.dismiss(report):
                self.system.log(f"owed: {'another process waits' if report is None else report}")
                return True
        except (KvmhooksError, OSError) as error:  # the lock is held by others; or as at the start
            self.system.log(f"owed: {words_of(error)}", severity=4)
        before, self.left = self.left, self._left()
        if self.left < before:
            self.interval = FIRST
        self.due = self.system.now() + self.interval
        self.interval = min(2 * self.interval, LAST)
        return False

    def _hasten(self) -> None:
        self.interval = FIRST
        self.due = min(self.due, self.system.now() + FIRST)

    def _left(self) -> int:
        """Count what is on record."""
        state = self.registry.look()
        return len(state.records) + sum(map(len, state.resources.values()))

    def _online(self) -> str:
        try:
            return self.system.read(_ONLINE)
        except OSError:  # it is read again at the next event
            return ""
