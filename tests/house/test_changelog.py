"""CHANGELOG.md has the form of Keep a Changelog 1.1.0 (https://keepachangelog.com/en/1.1.0/)."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_each_version_has_its_changes_by_kind() -> None:
    """The newest first, each kind once and in the order of that page, and nothing beside them."""
    first, *versions = re.split(r"(?m)^## ", TEXT)
    assert first.startswith("# Changelog\n")
    assert versions[0].startswith("[Unreleased]\n")
    for version in versions:
        name, *groups = re.split(r"(?m)^### ", version)
        assert re.fullmatch(r"\[.+\]( - \d{4}-\d\d-\d\d)?\n+", name)
        kinds = [group.partition("\n")[0] for group in groups]
        assert kinds == [kind for kind in KINDS if kind in kinds]
        for group in groups:
            assert re.fullmatch(r"\w+\n\n(- .+\n(  .+\n)*)+\n?", group), group.partition("\n")[0]
