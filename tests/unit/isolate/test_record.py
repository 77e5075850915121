"""The record of what is held, across versions: it is read as the one before wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.isolate import notation
from kvmhooks.isolate.state import FORMAT, State
from kvmhooks.version import VERSION

RECORDS = sorted((Path(__file__).parent / "records").glob("*.json"))
"""Each in the form of a released version, named for it, and kept as it is."""

BOOT = "b8a1f5a2-9a4b-4b7a-8b1e-1f6a0d5c0001"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_nothing_of_an_older_record_is_lost(path: Path) -> None:
    """An upgrade while VMs run: claims, originals, and what is owed go on as they are."""
    text = path.read_text()
    said = json.loads(State.from_text(text, BOOT).to_text())
    assert said == {**json.loads(text), "format": FORMAT, "version": VERSION}


def test_a_new_key_needs_a_new_format() -> None:
    """An older version would read a record of its own format, and drop the key that it does not
    know with the next write: what stands there would never be given back."""
    keys = {
        1: None,
        2: {"format", "version", "boot", "held", "pools", "functions", "vfs", "vf_settings",
            "mdevs", "reserved", "records"},
    }  # fmt: skip
    assert set(json.loads(State(BOOT).to_text())) == keys[FORMAT]


@pytest.mark.parametrize("newer", [FORMAT + 1, "3.1", None])
def test_a_record_of_another_format_is_refused_in_words(newer: object) -> None:
    """A downgrade while VMs run: which version wrote it, and what to do, is said; nothing is
    changed."""
    said = json.loads(State(BOOT).to_text()) | {"format": newer, "version": "9.9"}
    with pytest.raises(IsolationError) as refused:
        State.from_text(notation.to_text(said), BOOT)
    assert str(refused.value) == (
        f"/run/kvmhooks: found format {newer!r} of kvmhooks '9.9', expected {FORMAT}: run that "
        "version's `kvmhooks undo --all`, or stop its VMs first"
    )
