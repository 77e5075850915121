"""The command line of QEMU with the images that were opened before."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from kvmhooks.placement import Plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.qemu.passed_images import Opened, with_opened
from tests.laws.test_renderings import rich_plans


@given(rich_plans(), st.data())
def test_every_disk_is_named_by_number(made: Plan, data: st.DataObject) -> None:
    """No path of one that is open is left, and nothing else has changed."""
    disks = made.spec.disk
    assume(disks)
    chosen = data.draw(st.sets(st.integers(0, len(disks) - 1)))
    images = {at: [Opened(100 + at, disks[at].format)] for at in chosen}
    before = qemu_argv(made)
    after = with_opened(before, images)
    added = [word for option, word in pairwise(after) if option == "-add-fd"]
    assert added == [f"fd={100 + at},set={100 + at}" for at in sorted(chosen)]
    nodes = _nodes(after)
    for at, disk in enumerate(disks):
        expected = f"/dev/fdset/{100 + at}" if at in chosen else str(disk.path)
        assert nodes[f"disk{at}-file"]["filename"] == expected
    for at in chosen:
        nodes[f"disk{at}-file"]["filename"] = str(disks[at].path)
        nodes[f"disk{at}-format"].pop("backing", None)
    assert nodes == _nodes(before)
    assert Path(after[0]) == Path(before[0])


def _nodes(argv: list[str]) -> dict[str, dict[str, Any]]:
    found = (json.loads(word) for option, word in pairwise(argv) if option == "-blockdev")
    return {node["node-name"]: node for node in found}
