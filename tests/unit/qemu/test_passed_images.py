"""Images by their numbers: one command line as a whole, and what holds for any."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvmhooks.qemu.passed_images import Opened, with_opened

FILE = {
    "driver": "file",
    "node-name": "disk0-file",
    "filename": "/vm/top.qcow2",
    "aio": "io_uring",
    "discard": "unmap",
    "read-only": False,
    "cache": {"direct": True, "no-flush": False},
}
IMAGE = {
    "driver": "qcow2",
    "node-name": "disk0-format",
    "file": "disk0-file",
    "read-only": False,
    "cache": {"direct": True, "no-flush": False},
}
READ = {"read-only": True, "cache": {"direct": True, "no-flush": False}}


def words(*nodes: dict[str, Any]) -> list[str]:
    """A command line with nodes."""
    pairs = (("-blockdev", json.dumps(node, separators=(",", ":"))) for node in nodes)
    return ["qemu", *(word for pair in pairs for word in pair), "-S"]


def test_a_chain_is_named_from_the_lowest_on() -> None:
    """Each descriptor in a set of its own; what is built on is only read."""
    made = with_opened(
        words(FILE, IMAGE),
        {0: [Opened(100, "qcow2"), Opened(101, "qcow2"), Opened(102, "raw", is_block_device=True)]},
    )
    assert made[:7] == [
        "qemu",
        *("-add-fd", "fd=100,set=100"),
        *("-add-fd", "fd=101,set=101"),
        *("-add-fd", "fd=102,set=102"),
    ]
    base = {"node-name": "disk0-base1", "file": "disk0-base1-file", "backing": "disk0-base2"}
    lowest = {"node-name": "disk0-base2", "file": "disk0-base2-file"}
    file = {"filename": "/dev/fdset/101", "aio": "io_uring", **READ}
    assert ["qemu", *made[7:]] == words(
        {**FILE, "filename": "/dev/fdset/100"},
        {
            "driver": "host_device",
            "node-name": "disk0-base2-file",
            **file,
            "filename": "/dev/fdset/102",
        },
        {"driver": "raw", **lowest, **READ},
        {"driver": "file", "node-name": "disk0-base1-file", **file},
        {"driver": "qcow2", **base, **READ},
        {**IMAGE, "backing": "disk0-base1"},
    )


def test_an_image_by_itself_has_none_below() -> None:
    """It has none whatever its header says by then."""
    made = with_opened(words(FILE, IMAGE), {0: [Opened(100, "qcow2")]})
    assert ["qemu", *made[3:]] == words(
        {**FILE, "filename": "/dev/fdset/100"}, {**IMAGE, "backing": None}
    )


def test_a_disk_that_is_not_there_is_a_mistake() -> None:
    """It is not passed over."""
    with pytest.raises(ValueError, match="disk1-file"):
        with_opened(words(FILE, IMAGE), {1: [Opened(100, "raw")]})
