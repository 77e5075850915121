"""One small process for each running VM that owns CPUs: it sees to what no hook is called for.

New interrupts (VFIO's come when the guest's driver enables them), vCPUs that were pinned elsewhere
or plugged in, vhost workers that came later, an irqbalance that has forgotten its bans, groups that
came beside the VMs. It decides nothing: when something is new, it has the registry do under the
lock what any hook does. So it may be killed at any moment, and may be missing.

It sleeps until the kernel tells of something. Of new interrupts it does not tell, so there is a
look at their numbers: a second after anything happened, then after twice as long, up to half a
minute. A look writes nothing and takes no lock. However much happens, it takes 1 % of a CPU at the
most in the end (``pace``).

Matters of all VMs (interrupts, devices, irqbalance, the groups beside) are for one follower, the
first VM's; the others see to their own threads, and sleep when it wakes.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import KvmhooksError
from kvmhooks.isolate.engine.knob import View
from kvmhooks.isolate.hook import fastpath
from kvmhooks.isolate.hook.events import DEVICE, ENDED, LOST, Events
from kvmhooks.isolate.hook.pace import Pace
from kvmhooks.isolate.hook.telling import words_of
from kvmhooks.isolate.knobs import vfio_irqs
from kvmhooks.isolate.knobs.cpusets import narrowing
from kvmhooks.isolate.record.report import APPLIED, FAILED, REFUSAL, Report
from kvmhooks.isolate.record.state import RUNNING, Held, State
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.isolate.vm import neighbours
from kvmhooks.isolate.vm.affinity import stale
from kvmhooks.isolate.vm.cgroups import PARTITIONS_SINCE, Groups
from kvmhooks.isolate.vm.qemu_threads import VHOST, threads_of
from kvmhooks.isolate.vm.strays import Aloud

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FIRST: Final = 1.0
"""Seconds until the next look after anything happened."""

LAST: Final = 30.0
"""Seconds between two looks while nothing happens; each is twice the one before, up to this."""

WAKE: Final = 0.05
"""Seconds in which events gather while there is no end of them, at least."""

AGAIN: Final = 0.25
"""The same between two looks."""

HOST: Final = "host"
LATE: Final = "late"
PINNED: Final = "pinned"

_STATE: Final = "run/kvmhooks"
_IRQBALANCE: Final = "run/irqbalance"
_IRQS: Final = "sys/kernel/irq"


def follow(root: str, key: str) -> int:
    """Follow the VM that holds this claim to its end. Return the exit code."""
    gc.enable()  # the installed hook switches it off: most of its calls end at once
    system = System(root)
    registry = Registry(system, Store(root))
    try:
        held = registry.look().held.get(key)
    except KvmhooksError as error:
        sys.stderr.write(f"kvmhooks: {error}\n")
        return 0  # nobody can follow by such a record: systemd must not try again and again
    if held is None or (held.follower is not None and held.follower.is_alive(system)):
        return 0
    try:
        return Follower(system, registry, held).run()
    except ProcessLookupError:  # QEMU has ended
        return 0
    except (KvmhooksError, OSError, ValueError) as error:  # the record was damaged meanwhile
        system.log(f"{held.claim.name}: follower: {words_of(error)}", severity=4)
        return 1
    finally:
        registry.store.close()


def leads(system: System, state: State, key: str) -> bool:
    """Return whether a VM's follower, the first that is there, sees to the concerns of all.

    Where it is missing, the next one does until it is back.
    """
    for held in sorted(state.held.values(), key=lambda held: held.since):
        if held.claim.key == key:
            return True
        if held.state == RUNNING and held.follower is not None and held.follower.is_alive(system):
            return False
    return True


class Findings:
    """The findings of a look; another look that finds the same means that nothing is new."""

    __slots__ = ("balancers", "irqs", "requested", "workers")

    def __init__(self) -> None:
        self.irqs: dict[str, int] = {}
        self.requested: set[str] = set()
        """Those of the new ones that a driver handles by now."""
        self.workers: set[int] = set()
        self.balancers: list[str] = []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Findings):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # it is looked at, not kept


class Follower:
    """The follower of one VM."""

    def __init__(
        self,
        system: System,
        registry: Registry,
        held: Held,
        events: Events | None = None,
        spent: Callable[[], float] = time.process_time,
    ) -> None:
        self.system = system
        self.registry = registry
        self.key = held.claim.key
        self.name = held.claim.name
        self.pid = held.holder.pid
        self.events = Events(system, self.pid) if events is None else events
        self.aloud = Aloud(system)
        self._spent = spent
        self.seen = Findings()
        self.leads = False
        """Matters of all VMs are for this one."""
        self.levels: set[str] = set()
        """The directories that are watched for groups which have to be narrowed."""
        self._waking = Pace(WAKE, 2, 10.0)  # a group that has come must not wait for longer
        self._looking = Pace(AGAIN, 4, 120.0)
        self._used = 0.0
        """The CPU time that had been spent when it last went to sleep."""
        self._record: dict[str, int] = {}
        self._news = {HOST, LATE}
        """The kinds of work to do."""
        self._interval = FIRST
        self._look_at = 0.0
        self._act_at = 0.0
        """When what is new is seen to once more: a socket is made before it listens."""
        self._narrow_at = math.inf
        self._undecided = WAKE

    def run(self) -> int:
        """Look, act, and wait, until the VM or its claim is gone."""
        if self.system.is_real:
            self._lower()
        self._say_moot()
        while self._work():
            now = self.system.now()
            if self.events.rest(max(self._waking.due - now, 0)):
                break
            events = self.events.wait(self._left())
            if ENDED in events:
                break
            self._note(events)
        return 0

    def _left(self) -> float:
        """Return seconds until there is something to do without any event."""
        if LATE in self._news:
            return 0
        look = 0 if HOST in self._news else min(self._look_at, self._act_at)
        due = min(max(look, self._looking.due), self._narrow_at)
        return max(due - self.system.now(), 0)

    def _note(self, events: set[str]) -> None:
        """Sort events into what has to be seen to."""
        for event in events:
            above = event.rpartition("/")[0]
            if event == LOST:
                self._news |= {DEVICE, HOST, LATE}
            elif event == DEVICE:
                self._news |= {DEVICE, HOST}
            elif above in self.levels:
                self._news.add(LATE)
            elif event.endswith("/cpuset.cpus"):
                self._news |= {PINNED, HOST}
                self._interval = FIRST
            elif above == _STATE:
                if self._signature() != self._record:
                    self._news.add(HOST)
            elif above != "run" or event in {_STATE, _IRQBALANCE}:
                self._news.add(HOST)
                self._interval = FIRST

    def _signature(self) -> dict[str, int]:
        """Return the inode of each file of the record: it is replaced when it is written."""
        return self.system.inodes(_STATE)

    def _work(self) -> bool:
        """Do what is due; return whether to go on."""
        now = self.system.now()
        if self.leads and self.levels and (LATE in self._news or now >= self._narrow_at):
            self._narrow()
        self._news.discard(LATE)
        later, spent = self.system.now(), self._spent()
        self._waking.worked(now, later, spent - self._used)
        self._used = spent
        is_wanted = HOST in self._news or later >= min(self._look_at, self._act_at)
        if not is_wanted or later < self._looking.due:
            return True
        goes_on = self._look_and_act()
        self._used = self._spent()
        self._looking.worked(later, self.system.now(), self._used - spent)
        return goes_on

    def _look_and_act(self) -> bool:
        """Look whether anything is new, have the registry see to it; return whether to go on."""
        news, self._news = self._news, set()
        self._record = self._signature()
        state = self._state()
        if state is None:
            return False
        is_first, held = self._act_at == 0, state.held[self.key]
        is_new = self._lead(state) | self._is_new(held) or not news.isdisjoint({DEVICE, PINNED})
        is_due = is_new or self.system.now() >= self._act_at
        if is_due and not self._act():
            return False
        now = self.system.now()
        if is_due:
            self._record = self._signature()
            self._act_at = now + FIRST if is_new and not is_first else math.inf
            self._interval = FIRST
        elif HOST not in news:
            self._interval = min(2 * self._interval, LAST)
        self._look_at = now + self._interval
        self._watch(state)
        return True

    def _state(self) -> State | None:
        """Return the state on record; None when there is nothing to follow any more."""
        if fastpath.is_disabled(self.system.root):
            return None
        state = self.registry.look()
        held = state.held.get(self.key)
        return state if held is not None and held.holder.is_alive(self.system) else None

    def _lead(self, state: State) -> bool:
        """Find out whether matters of all VMs are for us; return whether they were not before."""
        before, self.leads = self.leads, leads(self.system, state, self.key)
        return self.leads and not before

    def _narrow(self) -> None:
        """Have the registry narrow groups that have come, again while it cannot be said whose."""
        is_new, self._narrow_at = LATE in self._news, math.inf
        if fastpath.is_disabled(self.system.root):
            return
        begun = self.system.now()
        try:
            report = self.registry.narrow()
        except (KvmhooksError, OSError) as error:
            self.system.log(f"{self.name}: follower: {words_of(error)}", severity=4)
            self._narrow_at = self.system.now() + FIRST
            return
        now = self.system.now()
        if report.is_pending:
            self._undecided = min(2 * self._undecided, LAST)
            self._narrow_at = now + self._undecided
        else:
            self._undecided = WAKE
            if is_new:  # on v1 a group is made before it is given its CPUs
                self._narrow_at = now + FIRST
        for result in report.of(APPLIED):
            took = (now - begun) * 1000
            self.system.log(f"{self.name}: follower: {result.key}: {result.value}: {took:.0f} ms")
        self._warn(report)

    def _act(self) -> bool:
        """Have the registry put right what is new; return whether to go on."""
        begun = self.system.now()
        try:
            me = Process.find(self.system, os.getpid()) or Process(os.getpid(), 0)
            report = self.registry.follow(self.key, me)
        except (KvmhooksError, OSError) as error:
            self.system.log(f"{self.name}: follower: {words_of(error)}", severity=4)
            self.seen = Findings()  # another holds the lock, or the record cannot be read: again
            return True
        if report is None:
            return False
        if report.of(APPLIED):
            took = (self.system.now() - begun) * 1000
            self.system.log(f"{self.name}: follower: {took:.0f} ms: {report}")
            self._warn(report)
        self.aloud.tell(self.registry.look().held.get(self.key))
        return True

    def _warn(self, report: Report) -> None:
        for result in report.of(REFUSAL, FAILED):
            self.system.log(f"{self.name}: follower: {result.key}: {result.why}", severity=7)

    def _is_new(self, held: Held) -> bool:
        """Return whether a look finds something that the registry has to see to."""
        before, self.seen = self.seen, self._look(self.seen)
        if self.seen != before:
            return True
        return bool(stale(self.system, held))

    def _look(self, before: Findings) -> Findings:
        """Return interrupts, vhost workers and irqbalance's sockets as they are now."""
        now = Findings()
        now.irqs = self.system.inodes(_IRQS) if self.leads else {}
        fresh = (name for name, inode in now.irqs.items() if before.irqs.get(name) != inode)
        waiting = set(fresh) | {
            name
            for name in before.irqs.keys() - before.requested
            if before.irqs[name] == now.irqs.get(name)
        }
        asleep = {name for name in waiting if not self._is_requested(name)}
        now.requested = now.irqs.keys() - asleep
        groups = Groups.find(self.system, ())
        now.workers = {
            thread.tid
            for thread in threads_of(self.system, groups, self.pid)
            if thread.role == VHOST
        }
        now.balancers = self.system.names(_IRQBALANCE) if self.leads else []
        return now

    def _is_requested(self, number: str) -> bool:
        try:
            return self.system.read(f"{_IRQS}/{number}/actions") != ""
        except OSError:
            return False

    def _watch(self, state: State) -> None:
        """Watch what is there by now: irqbalance's directory comes and goes with it."""
        for path in (_STATE, *self._groups()):
            self.events.watch(path)
        if not self.leads:
            return
        self.events.listen()
        for path in ("run", _IRQBALANCE):
            self.events.watch(path)
        levels = self._levels(state)
        for path in levels:
            self.events.watch(path, is_made_only=True)
        if levels - self.levels:  # new groups there before it was watched
            self._news.add(LATE)
        self.levels |= levels

    def _levels(self, state: State) -> set[str]:
        """Return the directories whose new groups are to be narrowed: none with partitions."""
        is_older = self.system.kernel() < PARTITIONS_SINCE
        if not is_older and not any(held.fallback for held in state.held.values()):
            return set()
        view = View.read(self.system, state.held.values())
        groups = Groups.find(self.system, view.held)
        if not groups.base or not narrowing(view, groups):
            return set()
        found = neighbours.levels(self.system, groups)
        return {f"{groups.base}/{path}".rstrip("/") for path, _ in found}

    def _groups(self) -> Iterable[str]:
        """Yield the directory of the VM's groups, and the set of each group of its threads."""
        groups = Groups.find(self.system, ())
        own = groups.of_process(self.system, self.pid)
        if not groups.base or not own:
            return
        above = own.rpartition("/")[0] if own.endswith("/emulator") else f"{own}/libvirt"
        path = f"{groups.base}/{above}"
        yield path
        for name in self.system.directories(path):
            if name.startswith(("vcpu", "emulator", "iothread")):
                yield f"{path}/{name}/cpuset.cpus"

    def _say_moot(self) -> None:
        why = vfio_irqs.posted(self.system)
        held = self.registry.look().held.get(self.key)
        if why and held is not None and held.claim.devices:
            self.system.log(f"{self.name}: placing VFIO's interrupts is moot: {why}")

    @staticmethod
    def _lower() -> None:
        """Lower our priority: our work can wait, and the kernel must not end QEMU for it."""
        os.setpriority(os.PRIO_PROCESS, 0, 10)
