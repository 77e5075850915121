"""The measuring tools themselves: one that cannot fail proves nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from .changes import CHANGES, FIND_IRQ, NODE1, THREADS, Change
from .variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .conftest import StartLab
    from .lab import Lab
    from .measure import Interrupts

pytestmark = pytest.mark.variants(*VARIANTS)


@dataclass
class Seen:
    """The difference's lines on changes; most are made at once, as a snapshot takes seconds."""

    lab: Lab
    possible: list[Change]
    together: list[str]

    def after(self, change: Change) -> list[str]:
        """Return the lines of the difference that this change has to be named in."""
        return _made(self.lab, [change]) if change.alone else self.together


@pytest.fixture(scope="module")
def seen(shared_lab: Lab) -> Seen:
    """A server on which all changes that leave each other alone were made at once, and undone."""
    shared_lab.put("/root/threads.py", THREADS)
    possible = [change for change in CHANGES if shared_lab.run(change.needs).exit_code == 0]
    together = _made(shared_lab, [change for change in possible if not change.alone])
    return Seen(shared_lab, possible, together)


def _made(lab: Lab, changes: Iterable[Change]) -> list[str]:
    with ExitStack() as undone:
        for change in changes:
            lab.output(change.before)
        before = lab.snapshot()
        for change in changes:
            undone.callback(lab.output, change.undo)
            lab.output(change.do)
        return before.diff(lab.snapshot())


@pytest.mark.once
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.section}: {change.about}")
def test_snapshot_sees_a_change_of_every_kind(seen: Seen, change: Change) -> None:
    """One thing of each kind that a snapshot watches is changed, and the difference names it."""
    if change not in seen.possible:
        pytest.skip(f"{seen.lab.variant.name} has nothing of the kind: {change.needs}")
    lines = seen.after(change)
    for words in change.shows:
        assert [line for line in lines if _in_order(words.split(), line)], "\n".join(lines)


def test_every_kind_that_a_snapshot_watches_was_tried(shared_lab: Lab) -> None:
    """No section of a snapshot goes without a change above that it has to see."""
    tried = {change.section for change in CHANGES}
    assert shared_lab.snapshot().sections - tried == set()


def test_two_snapshots_with_nothing_between_them_are_equal(lab: Lab) -> None:
    """Without a change there is no difference, also after a while."""
    before = lab.snapshot()
    again = lab.snapshot()
    lab.output("sleep 5")
    later = lab.snapshot()
    assert before.diff(again) == []
    assert before.diff(later) == []


@pytest.mark.once
def test_requested_and_effective_are_told_apart(shared_lab: Lab) -> None:
    """A difference can be asked for what was written, or for what the kernel makes of it."""
    before = shared_lab.snapshot()
    shared_lab.output(f"echo 4 > {NODE1}/nr_hugepages")
    after = shared_lab.snapshot()
    shared_lab.output(f"echo 0 > {NODE1}/nr_hugepages")
    assert before.diff(after, kind="requested") == [
        f"huge pages: {NODE1}/nr_hugepages (requested): '0' became '4'"
    ]
    assert before.diff(after, kind="effective") == [
        f"huge pages: {NODE1}/free_hugepages (effective): '0' became '4'"
    ]


def test_switches_sees_a_task_pinned_there_for_100_ms(shared_lab: Lab) -> None:
    """A task that spends 100 ms on a watched CPU is named, and one beside it is not."""
    with ThreadPoolExecutor() as pool:
        ran = pool.submit(shared_lab.switches, [6], 5)
        _wait_for_tracing(shared_lab)
        for cpu, name in ((6, "visitor"), (5, "neighbour")):
            shared_lab.output(f"cp /bin/bash /tmp/{name}")
            burn = f"timeout 0.1 /tmp/{name} -c 'while :; do :; done'"
            assert shared_lab.run(f"taskset -c {cpu} {burn}").exit_code == 124
        seen = {(task.cpu, task.name) for task in ran.result() if task.switches}
    assert (6, "visitor") in seen
    assert not [name for cpu, name in seen if cpu != 6 or name == "neighbour"]


def test_switches_sees_a_task_that_never_leaves(shared_lab: Lab) -> None:
    """A task that has a watched CPU from before and keeps it is named: it makes no switch."""
    shared_lab.output("taskset -c 6 chrt --fifo 1 stress-ng --cpu 1 --timeout 60 &> /dev/null &")
    try:
        shared_lab.output("sleep 1")
        ran = shared_lab.switches([6], 1)
    finally:
        shared_lab.output("pkill stress-ng")
    assert [task for task in ran if task.name.startswith("stress-ng") and not task.is_kernel]


def test_irqs_sees_an_interrupt_made_there(shared_lab: Lab) -> None:
    """Traffic on a network device interrupts the CPU that its interrupt is moved to, no other."""
    before = shared_lab.output(f"{FIND_IRQ}; cat /proc/irq/$irq/smp_affinity_list")
    for cpu, other in ((6, 2), (2, 6)):
        shared_lab.output(
            f"{FIND_IRQ}; echo {cpu} > /proc/irq/$irq/smp_affinity_list; echo; sleep 1"
        )
        with ThreadPoolExecutor() as pool:
            taken = pool.submit(shared_lab.irqs, [cpu, other], 3)
            while not taken.done():
                shared_lab.output("echo a packet")
            counts = _by_cpu(taken.result())
        assert counts.get(cpu, 0) >= 5
        assert other not in counts
    shared_lab.output(f"{FIND_IRQ}; echo {before} > /proc/irq/$irq/smp_affinity_list")


@pytest.mark.once
def test_a_fresh_lab_knows_nothing_of_another(start_lab: StartLab) -> None:
    """Two labs run at once, and a change to one is not in the other."""
    first, second = start_lab(), start_lab()
    first.put("/root/mark", "one")
    first.output("hostname one")
    assert second.output("hostname; ls /root/mark 2>&1 || true").splitlines()[0] == "lab"
    assert second.run("test -e /root/mark").exit_code == 1
    assert first.agent.port != second.agent.port


@pytest.mark.once
def test_a_command_tells_how_it_ended(shared_lab: Lab) -> None:
    """Output, errors, exit code and signal of a command come back apart."""
    result = shared_lab.run("cat; echo wrong >&2; exit 3", stdin="right")
    assert (result.stdout, result.stderr, result.exit_code) == ("right", "wrong\n", 3)
    assert shared_lab.run("kill -9 $$").exit_code == 128 + 9
    assert shared_lab.run(["/no/such/program"]).exit_code == 127


def _in_order(words: list[str], line: str) -> bool:
    position = 0
    for word in words:
        position = line.find(word, position)
        if position < 0:
            return False
        position += len(word)
    return True


def _wait_for_tracing(lab: Lab) -> None:
    enabled = "/sys/kernel/tracing/instances/lab-*/events/sched/sched_switch/enable"
    lab.output(f"until grep -qs 1 {enabled}; do sleep 0.05; done", seconds=30)


def _by_cpu(taken: list[Interrupts]) -> dict[int, int]:
    mine = [each for each in taken if each.name.endswith("virtio1-input.0")]
    return {each.cpu: each.count for each in mine}
