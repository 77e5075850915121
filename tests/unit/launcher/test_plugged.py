"""The files that a QEMU has, whatever their names are by now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvm_launch.talk.plugged import images
from kvmhooks.errors import QemuError


def test_an_image_is_the_file_that_is_open(tmp_path: Path) -> None:
    """By number or by name, once for all its nodes; nodes that are no file's are passed over."""
    path = tmp_path / "disk.raw"
    path.touch()
    with path.open() as first, path.open() as two:
        sets = [{"fdset-id": 7, "fds": [{"fd": first.fileno()}, {"fd": two.fileno()}]}]
        by_number = {"drv": "file", "file": "/dev/fdset/7", "ro": True}
        by_name = {"drv": "file", "file": str(path), "ro": True}
        others = [{"drv": "raw", "file": "/dev/fdset/9", "ro": True}, {"drv": "nbd", "ro": True}]
        found = images(os.getpid(), [by_number, by_name, *others], sets)
        inode = path.stat().st_ino
        assert [line.partition(" of ")[0] for line in found] == [f"image file {inode}"]
        path.rename(tmp_path / "elsewhere")
        assert images(os.getpid(), [by_number], sets) == found
        path.touch()
        with path.open() as other:
            sets = [{"fdset-id": 7, "fds": [{"fd": other.fileno()}]}]
            assert images(os.getpid(), [by_number], sets) != found
        for lost in (by_name, {**by_number, "file": "/dev/fdset/8"}, {**by_name, "file": ""}):
            with pytest.raises(QemuError, match="found another file than the one that QEMU has"):
                images(os.getpid(), [lost], sets)
