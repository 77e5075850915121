"""Fixtures of the lab's tests, collected only with ``--lab VARIANT[,VARIANT…]``."""

from __future__ import annotations

import fcntl
import re
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

from . import cache, order, proof, used
from . import lab as labs
from .variants import VARIANTS, Variant

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from .lab import Lab

LABS: pytest.StashKey[list[Lab]] = pytest.StashKey()
"""The labs that a test uses."""


class StartLab(Protocol):
    """Starts one more lab, ended with the test."""

    def __call__(self) -> Lab: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Without ``--lab`` nothing here is collected."""
    group = parser.getgroup("lab")
    group.addoption("--lab", metavar="VARIANTS", help="run the lab's tests on these variants")
    group.addoption(
        "--until",
        metavar="SECONDS",
        type=int,
        help="begin no test of the lab after this time, in seconds since 1970, and tell which",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and have the proof printed at the end."""
    text = "variants(*names): the variants that the test is for, instead of all with systemd"
    config.addinivalue_line("markers", text)
    text = "once: on the first of several variants alone, unless with --slow"
    config.addinivalue_line("markers", text)
    text = "once_a_release: as once, but on the first variant of each Debian release"
    config.addinivalue_line("markers", text)
    text = "alone: measures, so no other test of the lab runs beside it"
    config.addinivalue_line("markers", text)
    if config.getoption("--lab", default=None):
        is_worker = hasattr(config, "workerinput")
        config.pluginmanager.register(proof.Proof(is_worker=is_worker), "lab-proof")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the lab's tests alone unless they are asked for."""
    asked = config.getoption("--lab", default=None)
    return True if not asked and collection_path.name.startswith("test_") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on each of the variants that were asked for and that it is for."""
    if "variant" not in metafunc.fixturenames:
        return
    asked = metafunc.config.getoption("--lab").split(",")
    unknown = sorted(set(asked) - set(VARIANTS))
    if unknown:
        raise pytest.UsageError(f"no lab variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    marker = metafunc.definition.get_closest_marker("variants")
    usual = tuple(name for name, variant in VARIANTS.items() if variant.has_systemd)
    meant = marker.args if marker else usual
    names = [name for name in asked if name in meant]
    if not metafunc.config.getoption("--slow"):
        names = _those_that_differ(metafunc.definition, names)
    metafunc.parametrize("variant", names, indirect=True, scope="session")


def _those_that_differ(test: pytest.Item, names: list[str]) -> list[str]:
    """Leave out the variants that make no difference to what the test proves."""
    if test.get_closest_marker("once"):
        return names[:1]
    if test.get_closest_marker("once_a_release"):
        firsts: dict[str, str] = {}
        for name in names:
            firsts.setdefault(VARIANTS[name].release, name)
        return list(firsts.values())
    return names


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have the tests of one server run on one worker."""
    order.share(item)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort them, after pytest has by their variants."""
    order.sort(items, order.read())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin nothing when the time of the whole run is over."""
    until: int | None = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip(proof.NO_TIME)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep console and journal of the labs of a test that failed."""
    report = yield
    if report.when != "teardown" and report.failed:
        folder = cache.directory() / "failures" / re.sub(r"[^\w.-]+", "_", item.name)
        used: list[Lab] = item.stash.get(LABS, [])
        for number, lab in enumerate(used):
            lab.keep(folder / str(number))
            report.sections.append(("lab", f"console and journal are in {folder / str(number)}"))
    return report


@pytest.fixture(scope="session")
def variant(request: pytest.FixtureRequest) -> Variant:
    """The kind of server that the tests run on."""
    return VARIANTS[request.param]


@pytest.fixture(autouse=True)
def _room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run beside others, or alone; a test that waits to be alone stands in the door."""
    alone = request.node.get_closest_marker("alone") is not None
    directory = cache.directory()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "room.lock").open("a") as inside:
        with (directory / "door.lock").open("a") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.fixture
def start_lab(variant: Variant, request: pytest.FixtureRequest) -> Iterator[StartLab]:
    """Starts fresh labs, as many as the test wants."""
    started = request.node.stash.setdefault(LABS, [])
    with ExitStack() as stack:

        def start() -> Lab:
            lab = stack.enter_context(labs.running(variant))
            started.append(lab)
            return lab

        yield start


@pytest.fixture
def lab(start_lab: StartLab) -> Lab:
    """A fresh lab."""
    return start_lab()


@pytest.fixture
def used_lab(variant: Variant, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A fresh lab on which guests that own CPUs have run (see ``used``)."""
    with labs.running(variant, used.layers(variant)) as lab:
        request.node.stash.setdefault(LABS, []).append(lab)
        yield lab


@pytest.fixture(scope="module")
def shared_lab(variant: Variant) -> Iterator[Lab]:
    """One lab for a module whose tests put back what they change, or only look."""
    with labs.running(variant) as lab:
        yield lab


@pytest.fixture(autouse=True)
def _remember_shared_lab(request: pytest.FixtureRequest) -> None:
    if "shared_lab" in request.fixturenames:
        labs_of_test = request.node.stash.setdefault(LABS, [])
        labs_of_test.append(request.getfixturevalue("shared_lab"))
