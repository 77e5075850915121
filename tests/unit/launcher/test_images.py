"""The answers of qemu-img, as another user: he may have a hand in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvm_launch.prepare import disks, images
from kvmhooks.errors import LaunchError
from kvmhooks.spec import parse_vm

SIZE: dict[str, object] = {"virtual-size": 1 << 20}

ODD_KEYS: dict[str, dict[str, object]] = {
    "a size of text": {"virtual-size": "1"},
    "a size of truth": {"virtual-size": True},
    "a size below 0": {"virtual-size": -1},
    "a size of no file": {"virtual-size": 1 << 63},
    "a base that is a list": {"backing-filename": ["/a"]},
    "a base with a NUL": {"backing-filename": "/a\0"},
    "a base with half a character": {"full-backing-filename": "/\ud800"},
    "a base of a format that is a list": {"backing-filename-format": []},
    "data that is a list": {"format-specific": {"data": ["data-file"]}},
    "no object of a format": {"format-specific": 5},
}

ODD = {
    "too much": "cat /dev/zero",
    "too many words": "cat /dev/zero >&2",
    "brackets": "head -c 200000 /dev/zero | tr '\\0' '['",
    "no JSON": "printf 'hello'",
    "no UTF-8": "printf '\\377\\376\\375'",
    "no object": "echo '[]'",
    "nothing": "exit 0",
    "no size": "echo '{}'",
    **{name: f"echo '{json.dumps(SIZE | keys)}'" for name, keys in ODD_KEYS.items()},
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_answer_is_an_error_of_ours(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is known or is refused in words, within bounds, whatever a qemu-img prints."""
    tool = tmp_path / "qemu-img"
    tool.write_text(f"#!/bin/sh\n{ODD[what]}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(images, "QEMU_IMG", tool)
    head = 'name = "a"\ncpu.vcpus = 1\nmemory.size = "64MiB"\n'
    disk = f'[[disk]]\npath = "{tmp_path}/a.qcow2"\nformat = "qcow2"\n'
    spec = parse_vm(head + disk, folder=tmp_path)
    monkeypatch.setattr(disks, "QEMU_IMG", tool)
    with pytest.raises(LaunchError) as caught:
        disks.layers_of(spec, None)
    assert str(tool) in str(caught.value)
    assert len(str(caught.value)) < 500
