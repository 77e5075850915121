"""What every test shares: how much Hypothesis tries, and the project's own switches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

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
