"""The settings of every test: how much Hypothesis tries, and the project's own switches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import guard

settings.register_profile(
    "house",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "40")),
    derandomize="CI" in os.environ,
)
settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--regen``, ``--slow`` and ``--corpus``."""
    parser.addoption("--regen", action="store_true", help="write the golden files anew")
    parser.addoption("--corpus", metavar="DIR", help="a folder with more domain XML to tune")
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


@pytest.fixture(scope="session", autouse=True)
def _session_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail when a process is left, a mount or a file of ``/dev`` after the last test."""
    guard.mark(tmp_path_factory.getbasetemp())
    before = guard.look()
    yield
    left = [*guard.left_running(is_last=True), *guard.changes(before, guard.look())]
    assert not left, "the tests leave: " + "\n".join(left)


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing(_session_leaves_nothing: None) -> Iterator[None]:
    """Fail after the last test of the module that leaves something, so that it is known which."""
    before = guard.look()
    yield
    left = [*guard.left_running(is_last=False), *guard.changes(before, guard.look())]
    assert not left, "a test of this module leaves: " + "\n".join(left)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test of ``domain_file`` the domains of our own making and those of ``--corpus``."""
    if "domain_file" in metafunc.fixturenames:
        files = sorted((Path(__file__).parent / "golden" / "domains").glob("*.xml"))
        corpus = metafunc.config.getoption("--corpus")
        if corpus is not None:
            files += sorted(Path(corpus).rglob("*.xml"))
        metafunc.parametrize("domain_file", files, ids=[file.stem for file in files])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what takes minutes, unless it is asked for."""
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))
