"""The parts of a QEMU's machine now, whatever was plugged by hand since it was started."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kvm_launch.talk.vcpus import ANSWER_SECONDS, slots_of, there
from kvmhooks.errors import QemuError
from kvmhooks.qemu.qmp import Monitor
from kvmhooks.qemu.shapes import Shape

_PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon")
"""The places where QEMU has devices that were asked for, with and without an id (``qdev_set_id()``,
softmmu/qdev-monitor.c).
"""

_MEDIUM: Final = {
    "file": str, "node-name": str, "ro": bool, "image": {"virtual-size": int}
}  # fmt: skip
"""The parts of ``BlockDeviceInfo`` that are asked for (qapi/block-core.json)."""


_NODE: Final = {"drv": str, "*file": str, "ro": bool}

_FILES: Final = frozenset({"file", "host_device", "host_cdrom"})
"""Drivers of block nodes that are a file or a device of the host (block/file-posix.c)."""


async def machine(monitor: Monitor, pid: int) -> list[str]:
    """Return the vCPUs, devices, media and images of the QEMU ``pid`` as lines.

    They are the same for two that are alike. Raises ``QemuError``, also for a job of its disks that
    is under way, and for an image that is not to be told.
    """
    for job in await _asked(monitor, "query-jobs", {"id": str, "type": str}):
        raise QemuError(f"found the job {job['id']!r} ({job['type']}) under way, expected none")
    slots = await slots_of(monitor)
    vcpus = {slot.get("qom-path") for slot in slots}
    lines = [f"vCPUs {there(slots)}"]
    for place in _PLACES:
        shape = {"name": str, "type": str}
        for found in await _asked(monitor, "qom-list", shape, {"path": place}):
            kind = re.fullmatch(r"child<(.*)>", found["type"])
            if kind and f"{place}/{found['name']}" not in vcpus:
                lines.append(f"{place.rpartition('/')[2]} {found['name']}: {kind[1]}")
    lines += _media(await _asked(monitor, "query-block", {"*inserted": _MEDIUM}))
    nodes = await _asked(monitor, "query-named-block-nodes", _NODE)
    sets = await _asked(monitor, "query-fdsets", {"fdset-id": int, "fds": [{"fd": int}]})
    lines += await asyncio.to_thread(images, pid, nodes, sets)  # a file system may take its time
    return sorted(lines)


async def _asked(
    monitor: Monitor, command: str, shape: Shape, arguments: dict[str, object] | None = None
) -> list[dict[str, Any]]:
    """Return a list of objects of that ``shape``. Raises ``QemuError``."""
    answer: list[dict[str, Any]] = await monitor.execute(
        command, arguments, seconds=ANSWER_SECONDS, shape=[shape]
    )
    return answer


def _media(drives: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is in each drive; the numbers of descriptors are each QEMU's own."""
    for drive in drives:
        medium = drive.get("inserted")
        if medium is None:
            yield f"drive {drive.get('qdev')}: empty"
            continue
        file = re.sub(r"(?<=^/dev/fdset/)\d+$", "N", medium["file"])
        access = "read-only" if medium["ro"] else "read-write"
        size = medium["image"]["virtual-size"]
        yield f"drive {drive.get('qdev')}: {medium['node-name']}, {file}, {size} bytes, {access}"


def images(
    pid: int, nodes: Iterable[Mapping[str, Any]], sets: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return which files the block nodes of the QEMU ``pid`` are, each once, by device and inode.

    ``sets`` are its sets of descriptors. The open files of QEMU count, not those at a path by now:
    raises ``QemuError`` when that is another file.
    """
    members = {each["fdset-id"]: [fd["fd"] for fd in each["fds"]] for each in sets}
    held = dict(_open(pid))
    lines = set()
    for node in nodes:
        if node["drv"] not in _FILES:
            continue
        name = node.get("file", "")
        passed = re.fullmatch(r"/dev/fdset/(\d+)", name)
        if passed:
            found = {held.get(number) for number in members.get(int(passed[1]), ())}
        else:
            found = {_identity(Path(name))} & set(held.values())
        if len(found) != 1 or None in found:
            raise QemuError(f"{name}: found another file than the one that QEMU has open there")
        lines.add(f"image {found.pop()}, {'read-only' if node['ro'] else 'read-write'}")
    return sorted(lines)


def _open(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the numbers of a process's descriptors, each with the file that it is.

    Raises ``QemuError`` when they cannot be seen.
    """
    folder = Path(f"/proc/{pid}/fd")
    try:
        links = list(folder.iterdir())
    except OSError as error:
        raise QemuError(f"{folder}: {error.strerror}") from error
    for link in links:
        identity = _identity(link)
        if identity is not None:
            yield int(link.name), identity


def _identity(path: Path) -> str | None:
    """Return which file or block device is at ``path``, whatever its name; None for all else."""
    try:
        found = path.stat()
    except OSError:
        return None
    if stat.S_ISBLK(found.st_mode):
        return f"block device {os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    if stat.S_ISREG(found.st_mode):
        return f"file {found.st_ino} of {os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    return None
