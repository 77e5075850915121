"""What a VM needs on this host: looked at before anything is started, all of it at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kvmhooks.errors import Problem, SpecError
from kvmhooks.spec import VmSpec

INTERFACES = Path("/sys/class/net")


def check(spec: VmSpec) -> None:
    """Raise ``SpecError`` with everything that is missing."""
    problems = (*_files(spec), *_interfaces(spec))
    if problems:
        raise SpecError(spec.source, problems)


def _files(spec: VmSpec) -> Iterator[Problem]:
    boot = spec.boot
    named = {"boot.kernel": boot.kernel, "boot.initrd": boot.initrd}
    if isinstance(boot.firmware, Path):
        named["boot.firmware"] = boot.firmware
    for at, path in named.items():
        if path is not None:
            yield from _file(at, path, os.R_OK, "a file that can be read")
    for index, disk in enumerate(spec.disk):
        if disk.readonly:
            yield from _file(f"disk[{index}].path", disk.path, os.R_OK, "an image to read")
        else:
            mode = os.R_OK | os.W_OK
            yield from _file(f"disk[{index}].path", disk.path, mode, "an image to read and write")


def _file(at: str, path: Path, mode: int, expected: str) -> Iterator[Problem]:
    if not path.exists():
        yield Problem(at, f"no file {str(path)!r}", expected)
    elif path.is_dir() or not os.access(path, mode):
        kind = "a folder" if path.is_dir() else "no permission for"
        yield Problem(at, f"{kind} {str(path)!r}", expected)


def _interfaces(spec: VmSpec) -> Iterator[Problem]:
    for index, net in enumerate(spec.net):
        if net.device is None:
            continue
        is_there = (INTERFACES / net.device).exists()
        is_bridge = (INTERFACES / net.device / "bridge").exists()
        if not is_there or (net.type == "bridge" and not is_bridge):
            found = "no bridge" if is_there else "no interface"
            yield Problem(f"net[{index}].device", f"{found} {net.device!r}", f"a {net.type}")
