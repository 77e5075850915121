"""The lab's tests in their order, given to two workers by xdist itself, without a lab."""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab import order

LAB: Final = Path(__file__).parents[1] / "lab"


@dataclass(eq=False)
class Item:
    """A test, as far as its place in the order depends on it."""

    name: str
    module: str = "test_a"
    variant: str = "default"
    is_shared: bool = False
    is_alone: bool = False

    @property
    def nodeid(self) -> str:
        unit = f"@{self.module}-{self.variant}" if self.is_shared else ""
        return f"tests/lab/{self.module}.py::{self.name}[{self.variant}]{unit}"

    @property
    def path(self) -> Path:
        return LAB / f"{self.module}.py"

    @property
    def fixturenames(self) -> tuple[str, ...]:
        return ("shared_lab",) if self.is_shared else ("lab",)

    @property
    def callspec(self) -> SimpleNamespace:
        return SimpleNamespace(params={"variant": self.variant})

    def get_closest_marker(self, name: str) -> str | None:
        return name if name == "alone" and self.is_alone else None


@dataclass(eq=False)
class Worker:
    """A worker of xdist's: it starts a test when it knows the next one, or that there is none."""

    name: str
    queue: list[int] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)
    now: float = 0
    shutting_down: bool = False

    @property
    def gateway(self) -> SimpleNamespace:
        return SimpleNamespace(id=self.name)

    @property
    def can_run(self) -> bool:
        return len(self.queue) > (0 if self.shutting_down else 1)

    def send_runtest_some(self, indices: list[int]) -> None:
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def ordered(items: list[Item], known: dict[str, float]) -> list[Item]:
    """The items as the lab sorts them."""
    found = list(items)
    order.sort(cast("list[pytest.Item]", found), known)
    return found


def known_of(items: list[Item], seconds: list[int]) -> dict[str, float]:
    """The seconds of each item, as the file has them."""
    pairs = zip(items, seconds, strict=True)
    return {order.name_of(item.nodeid): taken for item, taken in pairs}


def run(nodeids: list[str], seconds: list[float]) -> list[Worker]:
    """Have xdist give the tests to two workers, each of which takes its ``seconds`` for a test."""
    load = pytest.importorskip("xdist.scheduler.loadgroup")
    workers = [Worker("gw0"), Worker("gw1")]
    options = {"tx": ["popen", "popen"], "px": [], "numprocesses": 2}
    config: Any = SimpleNamespace(
        getvalue=options.get, option=SimpleNamespace(loadscopereorder=False, debug=False)
    )
    scheduler = load.LoadGroupScheduling(config)
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, nodeids)
    scheduler.schedule()
    while any(worker.queue for worker in workers):
        worker = min((each for each in workers if each.can_run), key=lambda each: each.now)
        test = worker.queue.pop(0)
        worker.ran.append(test)
        worker.now += seconds[test]
        scheduler.mark_test_complete(worker, test)
        if scheduler.tests_finished:
            for each in workers:
                each.shutdown()
    return workers


def test_who_measures_is_first_then_the_longest() -> None:
    """A shared server's tests count together, in their own order; an unknown test is a long one."""
    short, long, new = Item("short"), Item("long"), Item("new")
    alone = Item("measures", is_alone=True)
    first, second = (Item(name, "test_b", is_shared=True) for name in ("first", "second"))
    other = Item("first", "test_b", "trixie", is_shared=True)
    items = [short, first, other, second, long, alone]
    known = known_of(items, [5, 30, 40, 20, 300, 60])
    found = ordered([*items, new], known)
    assert found == [alone, long, new, first, second, other, short]


def test_a_name_is_without_folder_and_server() -> None:
    """So a test keeps its seconds whether its server is shared by name or not."""
    name = "test_a.py::test_x[default-irq: a/b]"
    for nodeid in (f"tests/lab/{name}", f"tests/lab/{name}@test_a-default"):
        assert order.name_of(nodeid) == name
    assert order.name_of("tests/lab/test_a.py::test_y@test_a-") == "test_a.py::test_y"


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans(), st.integers(1, 500)),
        min_size=4,
        max_size=40,
    )
)
def test_two_workers_end_nearly_together(tests: list[tuple[str, bool, bool, int]]) -> None:
    """Each test runs once, a server is on one worker, and at the end none waits for longer than
    the other's last unit and two of its tests take."""
    items = [
        Item(f"test_{number}", f"test_{module}", is_shared=is_shared, is_alone=is_alone)
        for number, (module, is_shared, is_alone, _) in enumerate(tests)
    ]
    known = known_of(items, [taken for *_, taken in tests])
    found = ordered(items, known)
    seconds = [known[order.name_of(item.nodeid)] for item in found]
    workers = run([item.nodeid for item in found], seconds)
    assert sorted(itertools.chain(*(worker.ran for worker in workers))) == list(range(len(found)))
    at: dict[str, set[str]] = {}
    lengths: dict[str, float] = {}
    for worker in workers:
        for number in worker.ran:
            unit = order.server_of(cast("pytest.Item", found[number])) or found[number].nodeid
            at.setdefault(unit, set()).add(worker.name)
            lengths[unit] = lengths.get(unit, 0) + seconds[number]
    assert all(len(names) == 1 for names in at.values()), at
    apart = abs(workers[0].now - workers[1].now)
    assert apart <= max(lengths.values()) + 2 * max(seconds)


def test_what_is_known_is_of_tests_that_there_are() -> None:
    """A test that was renamed or removed leaves no line in ``seconds.json``."""
    there = {
        f"{path.name}::{node.name}"
        for path in LAB.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name.partition("[")[0] for name in order.read()} <= there
