"""The tests of packages are collected only with ``--packages``: they make Debian systems."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Without ``--packages`` nothing here is collected."""
    parser.addoption("--packages", action="store_true", help="build and install the packages")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave them alone unless they are asked for."""
    asked = config.getoption("--packages", default=False)
    return True if not asked and collection_path.name.startswith("test_") else None
