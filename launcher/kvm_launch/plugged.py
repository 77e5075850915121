"""What a QEMU's machine consists of now, whatever was plugged by hand since it was started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from kvm_launch.vcpus import ANSWER_SECONDS, slots_of, there
from kvmhooks.errors import QemuError
from kvmhooks.live.qmp import Monitor
from kvmhooks.live.shapes import Shape

_PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon")
"""Where QEMU has devices that were asked for, with and without an id (``qdev_set_id()``,
softmmu/qdev-monitor.c)."""

_MEDIUM: Final = {
    "file": str, "node-name": str, "ro": bool, "image": {"virtual-size": int}
}  # fmt: skip
"""What is asked of ``BlockDeviceInfo`` (qapi/block-core.json)."""


async def machine(monitor: Monitor) -> list[str]:
    """Return a machine's vCPUs, devices and media as lines, the same for two that are alike.

    Raises ``QemuError``, also for a job of its disks that is under way.
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
    return sorted(lines)


async def _asked(
    monitor: Monitor, command: str, shape: Shape, arguments: dict[str, object] | None = None
) -> list[dict[str, Any]]:
    """Return a list of objects of that ``shape``. Raises ``QemuError``."""
    said: list[dict[str, Any]] = await monitor.execute(
        command, arguments, seconds=ANSWER_SECONDS, shape=[shape]
    )
    return said


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
