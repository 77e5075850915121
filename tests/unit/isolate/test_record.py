"""The record of what is held, across versions: it is read as the one before wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand, Origin
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand, HugePagePool
from kvmhooks.isolate.kinds.kind import KINDS
from kvmhooks.isolate.kinds.mdevs import MdevDemand, Mediated
from kvmhooks.isolate.kinds.vf_pools import VfPool, VfPoolDemand
from kvmhooks.isolate.kinds.vf_powers import VfSettings, VfSettingsDemand
from kvmhooks.isolate.record import json as notation
from kvmhooks.isolate.record.state import FORMAT, State
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.version import VERSION

RECORDS = sorted((Path(__file__).parent / "records").glob("*.json"))
"""Each in the form of a released version, named for it, and kept as it is. b52323f writes the one
of a92f6b5 byte for byte."""

BOOT = "b8a1f5a2-9a4b-4b7a-8b1e-1f6a0d5c0001"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_nothing_of_an_older_record_is_lost(path: Path) -> None:
    """An upgrade while VMs run: claims, originals and debts go on as they are, in the form that a
    supervisor of that version, which still runs, reads and writes itself."""
    text = path.read_text()
    document = json.loads(State.from_text(text, BOOT).to_text())
    assert document == {**json.loads(text), "version": VERSION}


def test_an_older_record_says_the_same_of_each_kind() -> None:
    """Of every kind there is a demand in a claim, and a thing that was acquired."""
    (path,) = RECORDS
    state = State.from_text(path.read_text(), BOOT)
    first, second = state.held.values()
    card, function, mdev = "0000:3b:00.0", "0000:3b:02.0", "00000000-0000-4000-8000-000000000007"
    assert first.claim.demands == {
        "hugepages": (HugePageDemand(0, 2048, 512), HugePageDemand(1, 1048576, 4)),
        "vfs": (VfPoolDemand(card, 8),),
        "vf_settings": (VfSettingsDemand(card, 1, {"mac": "52:54:00:00:00:01", "trust": "on"}),),
        "functions": (FunctionDemand(function),),
        "mdevs": (MdevDemand(mdev, "0000:41:00.0", "nvidia-35"),),
    }
    assert dict(first.claim.settings) == {
        "isolation.exclusive": "yes", "power.governor": "performance"
    }  # fmt: skip
    assert second.claim.demands == {}
    assert state.resources == {
        "hugepages": {"0/2048": HugePagePool(12, {first.claim.key: 12}, before=100, want=512)},
        "vfs": {card: VfPool(8, "1", identity="990", made=8)},
        "vf_settings": {
            f"{card}/1": VfSettings(
                "0x8086 0x1521 12", {"mac": "00:00:00:00:00:00"}, {"mac": "52:54:00:00:00:07"}
            )
        },
        "functions": {function: Origin("iavf", "", identity="991", waits=Process(4711, 123456))},
        "mdevs": {mdev: Mediated("0000:41:00.0", "nvidia-35")},
    }
    assert state.resources.keys() == KINDS.keys()


def test_a_new_key_needs_a_new_format() -> None:
    """An older version would read a record of its own format, and drop the key that it does not
    know with the next write: its things would never be given back."""
    keys = {
        1: None,
        2: {"format", "version", "boot", "held", "pools", "functions", "vfs", "vf_settings",
            "mdevs", "reserved", "records"},
        3: {"format", "version", "boot", "held", "resources", "reserved", "records"},
    }  # fmt: skip
    assert set(json.loads(State(BOOT).to_text())) == keys[FORMAT]
    assert set(json.loads(State(BOOT, 2).to_text())) == keys[2]


@pytest.mark.parametrize("newer", [FORMAT + 1, "3.1", None])
def test_a_record_of_another_format_is_refused_in_words(newer: object) -> None:
    """A downgrade while VMs run: the message says which version wrote it, and what to do; nothing
    is changed."""
    document = json.loads(State(BOOT).to_text()) | {"format": newer, "version": "9.9"}
    with pytest.raises(IsolationError) as refused:
        State.from_text(notation.to_text(document), BOOT)
    assert str(refused.value) == (
        f"/run/kvmhooks: found format {newer!r} of kvmhooks '9.9', expected {FORMAT}: run that "
        "version's `kvmhooks undo --all`, or stop its VMs first"
    )
