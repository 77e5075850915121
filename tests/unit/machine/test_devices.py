"""Small devices: each has one file, of which nobody else knows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import attrs
import pytest

from kvmhooks.errors import SpecError
from kvmhooks.machine.devices.device import Device
from kvmhooks.spec import parse_vm
from kvmhooks.spec.device import FOLDER, device_class, hints_of
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.present import DEVICES, devices_of

NEUTRAL = {"__init__", "device"}
"""Modules beside the devices'."""


def test_each_device_has_one_file() -> None:
    """All that is registered is there, and each class is a device of its own name."""
    folder = Path(sys.modules[Device.__module__].__file__ or "").parent
    assert {path.stem for path in folder.glob("*.py")} - NEUTRAL == set(DEVICES)
    for name in DEVICES:
        made = device_class(name)
        assert issubclass(made, Device)
        assert made.__module__ == f"{FOLDER}.{name}"
        assert made in get_args(hints_of(VmSpec)[name])
        assert made.switch in {"", *attrs.fields_dict(made)}


def test_shared_memory_has_the_size_of_a_bar() -> None:
    """A power of two, from 1 MiB on; QEMU, libvirt and PCI know no other."""
    least = 'name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'
    expected = "a power of two from 1MiB on"
    for size in ("512KiB", "48MiB"):
        with pytest.raises(SpecError, match=f"shared_memory.size: found '{size}', .* {expected}"):
            parse_vm(f'{least}shared_memory.size = "{size}"', folder=Path("/"))


def test_a_table_without_its_device_is_a_vm_without() -> None:
    """A table that says «none» has no device, as if it were not there."""
    least = 'name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'
    spec = parse_vm(f'{least}watchdog.model = "none"', folder=Path("/"))
    assert [*devices_of(spec)] == []
