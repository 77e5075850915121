"""One small process for each running VM that owns CPUs: it sees to what no hook is called for.

New interrupts (VFIO's come when the guest's driver enables them), vCPUs that were pinned elsewhere
or plugged in, vhost workers that came later, an irqbalance that has forgotten its bans. It decides
nothing: whatever is new, it has the keeper do under the lock what any hook does. So it may be
killed at any moment, and may be missing.

It sleeps until the kernel tells of something. Of new interrupts it does not tell, so there is a
look at their numbers: a second after anything happened, then after twice as long, up to half a
minute. A look writes nothing and takes no lock.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import KvmhooksError
from kvmhooks.isolate import gate
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.events import DEVICE, ENDED, Events
from kvmhooks.isolate.groups import Groups
from kvmhooks.isolate.keeper import Keeper
from kvmhooks.isolate.knobs import vectors
from kvmhooks.isolate.pins import stale
from kvmhooks.isolate.report import APPLIED, FAILED, REFUSAL, Report
from kvmhooks.isolate.state import Held, Process
from kvmhooks.isolate.store import Store
from kvmhooks.isolate.telling import words_of
from kvmhooks.isolate.threads import VHOST, threads_of

if TYPE_CHECKING:
    from collections.abc import Iterable

FIRST: Final = 1.0
"""Seconds until the next look after anything happened."""

LAST: Final = 30.0
"""Seconds between two looks while nothing happens; each is twice the one before, up to this."""

_STATE: Final = "run/kvmhooks"
_IRQBALANCE: Final = "run/irqbalance"
_IRQS: Final = "sys/kernel/irq"


def follow(root: str, key: str) -> int:
    """Follow the VM that holds this claim to its end. Return the exit code."""
    gc.enable()  # the installed hook switches it off: most of its calls end at once
    door = Door(root)
    keeper = Keeper(door, Store(root))
    try:
        held = keeper.look().held.get(key)
    except KvmhooksError as error:
        sys.stderr.write(f"kvmhooks: {error}\n")
        return 0  # nobody can follow by such a record: systemd must not try again and again
    if held is None or (held.follower is not None and held.follower.is_alive(door)):
        return 0
    try:
        return Follower(door, keeper, held).run()
    except ProcessLookupError:  # QEMU has ended
        return 0
    except (KvmhooksError, OSError, ValueError) as error:  # the record was damaged meanwhile
        door.log(f"{held.claim.name}: follower: {words_of(error)}", severity=4)
        return 1
    finally:
        keeper.store.close()


class Seen:
    """What a look has found; another look that finds the same means that nothing is new."""

    __slots__ = ("balancers", "irqs", "requested", "workers")

    def __init__(self) -> None:
        self.irqs: dict[str, int] = {}
        self.requested: set[str] = set()
        """Those of the new ones that a driver handles by now."""
        self.workers: set[int] = set()
        self.balancers: list[str] = []

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Seen):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # it is looked at, not kept


class Follower:
    """The follower of one VM."""

    def __init__(self, door: Door, keeper: Keeper, held: Held) -> None:
        self.door = door
        self.keeper = keeper
        self.key = held.claim.key
        self.name = held.claim.name
        self.pid = held.holder.pid
        self.events = Events(door, self.pid)
        self.seen = Seen()
        self.interval = FIRST

    def run(self) -> int:
        """Look, act, and wait, until the VM or its claim is gone."""
        if self.door.is_real:
            self._lower()
        self._say_moot()
        self.seen = self._look(self.seen)
        is_due, again = True, math.inf
        while not is_due or self._act():
            self._watch()
            events = self.events.wait(min(self.interval, max(again - self.door.now(), 0)))
            held = None if ENDED in events else self._held()
            if held is None:
                break
            is_new = self._is_new(held) or DEVICE in events
            is_due = is_new or self.door.now() >= again
            if is_new:  # a socket is made before it listens, a device before it is used
                again = self.door.now() + FIRST
            elif is_due:
                again = math.inf
            if is_due or self._tell(events):
                self.interval = FIRST
            elif not events:
                self.interval = min(2 * self.interval, LAST)
        return 0

    def _held(self) -> Held | None:
        """The claim; None when there is nothing to follow any more."""
        if gate.exists(self.door.root, "etc/kvmhooks/disabled"):
            return None
        held = self.keeper.look().held.get(self.key)
        return held if held is not None and held.holder.is_alive(self.door) else None

    def _act(self) -> bool:
        """Have the keeper put right what is new; whether to go on."""
        begun = self.door.now()
        try:
            me = Process.find(self.door, os.getpid()) or Process(os.getpid(), 0)
            report = self.keeper.follow(self.key, me)
        except (KvmhooksError, OSError) as error:
            self.door.log(f"{self.name}: follower: {error}", severity=4)
            self.seen = Seen()  # another entry holds the lock, or the record cannot be read: again
            return True
        if report is None:
            return False
        if report.of(APPLIED):
            took = (self.door.now() - begun) * 1000
            self.door.log(f"{self.name}: follower: {took:.0f} ms: {report}")
            self._warn(report)
        return True

    def _warn(self, report: Report) -> None:
        for one in report.of(REFUSAL, FAILED):
            self.door.log(f"{self.name}: follower: {one.key}: {one.why}", severity=7)
        held = self.keeper.look().held.get(self.key)
        for warning in () if held is None else held.warnings:
            self.door.log(f"{self.name}: {warning}", severity=4)

    def _is_new(self, held: Held) -> bool:
        """Whether a look finds something that the keeper has to see to."""
        before, self.seen = self.seen, self._look(self.seen)
        if self.seen != before:
            return True
        return bool(stale(self.door, held))

    def _look(self, before: Seen) -> Seen:
        """Interrupts, vhost workers and irqbalance's sockets as they are now."""
        now = Seen()
        now.irqs = self.door.inodes(_IRQS)
        fresh = (name for name, inode in now.irqs.items() if before.irqs.get(name) != inode)
        waiting = set(fresh) | {
            name
            for name in before.irqs.keys() - before.requested
            if before.irqs[name] == now.irqs.get(name)
        }
        asleep = {name for name in waiting if not self._is_requested(name)}
        now.requested = now.irqs.keys() - asleep
        groups = Groups.find(self.door, ())
        now.workers = {
            one.tid for one in threads_of(self.door, groups, self.pid) if one.role == VHOST
        }
        now.balancers = self.door.names(_IRQBALANCE)
        return now

    def _is_requested(self, number: str) -> bool:
        try:
            return self.door.read(f"{_IRQS}/{number}/actions") != ""
        except OSError:
            return False

    def _watch(self) -> None:
        """Watch what is there by now: irqbalance's directory comes and goes with it."""
        for path in ("run", _STATE, _IRQBALANCE, *self._groups()):
            self.events.watch(path)

    def _groups(self) -> Iterable[str]:
        """The directory of the VM's groups, and each vCPU's set."""
        groups = Groups.find(self.door, ())
        own = groups.of_process(self.door, self.pid)
        if not groups.base or not own:
            return
        above = own.rpartition("/")[0] if own.endswith("/emulator") else f"{own}/libvirt"
        path = f"{groups.base}/{above}"
        yield path
        for name in self.door.directories(path):
            if name.startswith("vcpu"):
                yield f"{path}/{name}/cpuset.cpus"

    @staticmethod
    def _tell(events: set[str]) -> bool:
        """Whether events may be followed by more: any but those of our own record."""
        return any(
            not path.startswith(_STATE) and (path.count("/") > 1 or path == _IRQBALANCE)
            for path in events
        )

    def _say_moot(self) -> None:
        why = vectors.posted(self.door)
        held = self.keeper.look().held.get(self.key)
        if why and held is not None and held.claim.devices:
            self.door.log(f"{self.name}: placing VFIO's interrupts is moot: {why}")

    @staticmethod
    def _lower() -> None:
        """Whatever it does can wait, and it must not be what the kernel ends QEMU for."""
        os.setpriority(os.PRIO_PROCESS, 0, 10)
