"""What a QEMU's machine consists of now, whatever was plugged by hand since it was started."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kvm_launch.vcpus import ANSWER_SECONDS, slots_of, there
from kvmhooks.errors import QemuError
from kvmhooks.live.qmp import Monitor

_PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon")
"""Where QEMU has devices that were asked for, with and without an id (``qdev_set_id()``,
softmmu/qdev-monitor.c)."""


async def machine(monitor: Monitor) -> list[str]:
    """Return a machine's vCPUs, devices and media as lines, the same for two that are alike.

    Raises ``QemuError``, also for a job of its disks that is under way.
    """
    for job in await monitor.execute("query-jobs", seconds=ANSWER_SECONDS):
        raise QemuError(f"found the job {job['id']!r} ({job['type']}) under way, expected none")
    slots = await slots_of(monitor)
    vcpus = {slot.get("qom-path") for slot in slots}
    lines = [f"vCPUs {there(slots)}"]
    for place in _PLACES:
        for found in await monitor.execute("qom-list", {"path": place}, seconds=ANSWER_SECONDS):
            kind = re.fullmatch(r"child<(.*)>", found["type"])
            if kind and f"{place}/{found['name']}" not in vcpus:
                lines.append(f"{place.rpartition('/')[2]} {found['name']}: {kind[1]}")
    lines += _media(await monitor.execute("query-block", seconds=ANSWER_SECONDS))
    return sorted(lines)


def _media(drives: list[Mapping[str, Any]]) -> Iterator[str]:
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
