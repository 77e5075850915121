"""The lab's devices: libudev's words of them against the files', on a server with many."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .variants import VARIANTS

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*VARIANTS)

COMPARE = """
import json, attrs
from kvmhooks.host import contract; from kvmhooks.host.bus import pci, udev
from kvmhooks.host.files.tree import Tree
plain = lambda found: json.dumps([contract.plain(device) for device in found])
print(plain(udev.read_pci(Tree("/"))))
print(plain(pci.read_pci_files(Tree("/"))))
"""


def test_libudev_and_the_files_agree(shared_lab: Lab) -> None:
    """Every device with its driver, group, functions, interfaces and disks."""
    through_udev, through_files = map(
        json.loads, shared_lab.output(["python3", "-c", COMPARE]).splitlines()
    )
    assert through_udev == through_files
    assert through_udev


CAPTURE = """
import pathlib, tempfile
from kvmhooks.host import read
from kvmhooks.host.capture import capture
with tempfile.TemporaryDirectory() as name:
    file = pathlib.Path(name, "host.tar.gz")
    print(capture(file) == read(file))
"""


def test_a_capture_of_the_lab_reads_back_the_same(shared_lab: Lab) -> None:
    """With its IOMMU groups, functions, interrupts and control groups."""
    assert shared_lab.output(["python3", "-c", CAPTURE]).strip() == "True"
