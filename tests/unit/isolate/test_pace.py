"""The rates at which a follower looks, acts and narrows, by a clock of the test's own: counts
alone.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.isolate.hook.events import DEVICE, ENDED, Events
from kvmhooks.isolate.hook.follower import FIRST, Follower, leads
from kvmhooks.isolate.hook.pace import SHARE, Pace
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, Record
from tests.isolate_model.world import Vm, World

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmhooks.isolate.record.report import Report
    from kvmhooks.isolate.record.state import State

SECONDS = 120
"""The length of each storm: as the one that cost 14 s of a CPU."""

COSTS = {"look": 0.004, "narrow": 0.004, "follow": 0.06}
"""Seconds of a CPU, as measured on a host of 8 CPUs and a hundred units."""

GROUP = "sys/fs/cgroup/machine.slice/libpod-{}.scope"


class Clocked(Kernel):
    """A host whose clock the test turns."""

    seconds = 0.0

    def now(self) -> float:
        return self.seconds


class Counted(Registry):
    """A registry that counts, and says what a call would have cost."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel, Record(kernel))
        self.calls: dict[str, list[float]] = {what: [] for what in COSTS}

    def _count(self, what: str) -> None:
        self.calls[what].append(self.system.now())

    def look(self) -> State:
        self._count("look")
        return super().look()

    def narrow(self) -> Report:
        self._count("narrow")
        return super().narrow()

    def follow(self, key: str, follower: Process) -> Report | None:
        self._count("follow")
        return super().follow(key, follower)

    @property
    def spent(self) -> float:
        return sum(COSTS[what] * len(times) for what, times in self.calls.items())

    @property
    def counts(self) -> dict[str, int]:
        return {what: len(times) for what, times in self.calls.items()}


class Script:
    """Events at times that a test says; QEMU ends after the last."""

    def __init__(self, kernel: Clocked, events: Iterable[tuple[float, str]], end: float) -> None:
        self.kernel = kernel
        self.events = sorted(events)
        self.end = end
        self.watched: set[str] = set()
        self.wakes = 0

    def rest(self, seconds: float) -> bool:
        self.kernel.seconds += seconds
        return self.kernel.seconds >= self.end

    def wait(self, seconds: float) -> set[str]:
        kernel = self.kernel
        coming = self.events[0][0] if self.events else self.end
        kernel.seconds = max(kernel.seconds, min(coming, kernel.seconds + seconds, self.end))
        found = {event for at, event in self.events if at <= kernel.seconds}
        self.events = [event for event in self.events if event[0] > kernel.seconds]
        self.wakes += bool(found)
        return {ENDED} if kernel.seconds >= self.end else found

    def watch(self, path: str, *, is_made_only: bool = False) -> None:
        del is_made_only
        self.watched.add(path)

    def listen(self) -> None:
        self.watched.add(DEVICE)


def guest(name: str = "a", cpus: str = "6-7") -> Vm:
    return Vm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"))


def followed(
    events: Iterable[tuple[float, str]] = (),
    end: float = SECONDS,
    flavour: str = "systemd",
    vms: tuple[tuple[str, str], ...] = (("a", "6-7"),),
) -> tuple[Counted, Script]:
    """Follow the last of some VMs to its end; the followers of the others are there."""
    kernel = Clocked(flavour, 8, 4)
    world = World(kernel)
    for name, cpus in vms:
        world.start(guest(name, cpus))
    kernel.pin(kernel.libvirtd, kernel.online)
    for name, _ in vms[:-1]:
        pid = kernel.spawn("python3", group="system.slice/cron.service")
        World(kernel).registry.follow(guest(name).key, Process(pid, kernel.tasks[pid].start))
    registry, script = Counted(kernel), Script(kernel, events, end)
    held = registry.look().held[guest(vms[-1][0]).key]
    registry.calls["look"].clear()
    follower = Follower(kernel, registry, held, cast("Events", script), lambda: registry.spent)
    assert follower.run() == 0
    return registry, script


def every(seconds: float, event: str, start: float = 10) -> list[tuple[float, str]]:
    count = int((SECONDS - start) / seconds)
    return [(start + at * seconds, event.format(at)) for at in range(count)]


STORMS: dict[str, tuple[list[tuple[float, str]], dict[str, int]]] = {
    # what comes: how often each is called at the most
    "nothing": ([], {"look": 30, "narrow": 2, "follow": 1}),
    "veth": (every(0.05, DEVICE), {"look": 30, "narrow": 2, "follow": 12}),
    "containers": (every(0.05, GROUP), {"look": 30, "narrow": 170, "follow": 1}),
    "records": (every(0.05, "run/kvmhooks/state.json"), {"look": 30, "narrow": 2, "follow": 1}),
    "files of others": (every(0.05, "run/xtables.lock"), {"look": 30, "narrow": 2, "follow": 1}),
    "vCPUs' sets": (every(0.05, "sys/fs/cgroup/x/vcpu0/cpuset.cpus"),
                    {"look": 30, "narrow": 2, "follow": 12}),
    "all": ([*every(0.05, DEVICE), *every(0.07, GROUP), *every(0.2, "run/kvmhooks/state.json")],
            {"look": 30, "narrow": 170, "follow": 12}),
}  # fmt: skip


@pytest.mark.parametrize("storm", STORMS)
def test_a_storm_costs_at_most_a_hundredth_of_a_cpu(storm: str) -> None:
    """It holds for any number of events in two minutes; before, each cost a look, most an act."""
    events, most = STORMS[storm]
    registry, script = followed(events)
    print(
        f"{storm}: {len(events)} events, {script.wakes} wakes, {registry.counts}, {registry.spent}"
    )
    assert {
        what: min(count, most[what]) for what, count in registry.counts.items()
    } == registry.counts
    assert registry.spent <= 0.01 * SECONDS
    assert script.wakes <= SECONDS / 0.05


@pytest.mark.parametrize("at", [20.0, 47.3])
def test_what_comes_alone_is_seen_to_at_once(at: float) -> None:
    """A group is narrowed, and a device looked after, in the same moment; once more after 1 s."""
    registry, _ = followed([(at, GROUP.format(1))])
    assert [second for second in registry.calls["narrow"] if second > 2] == [at, at + FIRST]
    registry, _ = followed([(at, DEVICE)])
    assert [second for second in registry.calls["follow"] if second > 2] == [at, at + FIRST]


def test_in_a_storm_a_group_waits_for_less_than_a_second() -> None:
    """A hundred and sixty times of two thousand, so that each of them is narrowed soon."""
    registry, _ = followed(every(0.05, GROUP))
    times = [second for second in registry.calls["narrow"] if second >= 10]
    assert max(b - a for a, b in pairwise(times)) <= COSTS["narrow"] / SHARE + 1


def test_with_partitions_groups_wake_nobody() -> None:
    """The kernel keeps them off: their directories are not even watched."""
    registry, script = followed(every(0.05, DEVICE), flavour="partitions")
    assert registry.counts["narrow"] == 0
    groups = {path for path in script.watched if path.startswith("sys/fs/cgroup")}
    assert groups == {path for path in groups if "/libvirt" in path}


def test_of_several_followers_one_looks_after_what_concerns_all() -> None:
    """The second VM's wakes for its own threads and for the record, and never narrows."""
    first, script = followed(vms=(("a", "6-7"),))
    assert {"run", "run/irqbalance", DEVICE, "sys/fs/cgroup", "sys/fs/cgroup/machine.slice"} <= (
        script.watched
    )
    second, script = followed(vms=(("a", "6-7"), ("b", "4-5")))
    assert {path for path in script.watched if "/libvirt" not in path} == {"run/kvmhooks"}
    assert (first.counts["narrow"], second.counts["narrow"]) == (2, 0)
    assert second.counts["follow"] == 1


def test_where_the_first_follower_is_missing_the_next_one_does() -> None:
    """Killed, it comes again after 5 s, or never: then its work is the next one's."""
    kernel = Clocked("systemd", 8, 4)
    world = World(kernel)
    a, b = guest("a"), guest("b", "4-5")
    world.start(a)
    world.start(b)
    leading: list[Any] = [(leads(kernel, world.state, a.key), leads(kernel, world.state, b.key))]
    pid = kernel.spawn("python3", group="system.slice/cron.service")
    world.registry.follow(a.key, Process(pid, kernel.tasks[pid].start))
    leading.append((leads(kernel, world.state, a.key), leads(kernel, world.state, b.key)))
    kernel.end(pid)
    leading.append((leads(kernel, world.state, a.key), leads(kernel, world.state, b.key)))
    world.stop(a)
    leading.append(leads(kernel, world.state, b.key))
    assert leading == [(True, True), (True, False), (True, True), True]


@given(st.floats(0.000_1, 0.5), st.sampled_from([2, 4]))
def test_law_a_pace_keeps_to_its_share(cost: float, factor: int) -> None:
    """It does where there is always something to do, once the pauses have grown; and the first is
    at once, also after a time without any.
    """
    pace, now, rounds = Pace(0.05, factor, 1_000), 1.0, 0
    while now < 1_000:
        pace.worked(now, now, cost)
        rounds += 1
        now = max(pace.due, now)
    assert cost * (rounds - 12) <= 1_000 * SHARE * 1.01
    now = pace.due + 1_000
    pace.worked(now, now, cost)
    assert pace.due == now + 0.05
