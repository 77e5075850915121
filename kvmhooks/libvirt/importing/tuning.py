"""``[tuning]``: shares, limits and scheduling classes."""

from __future__ import annotations

from typing import Final

from kvmhooks.errors import ValueFormatError
from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.amounts import amount
from kvmhooks.libvirt.importing.cpu import vcpus_of
from kvmhooks.libvirt.importing.reading import Reading
from kvmhooks.machine.domain_reading import Tables, number
from kvmhooks.policy import NAMESPACE, SETTINGS
from kvmhooks.values import ByteSize, CpuSet

_BANDWIDTHS: Final = {
    "": "vcpus", "global_": "total", "emulator_": "emulator", "iothread_": "iothreads",
}  # fmt: skip

_MEMORY: Final = {"hard_limit": "hard", "soft_limit": "soft", "swap_hard_limit": "swap"}

_SCHEDULERS: Final = {
    "vcpusched": ("vcpus", "vcpus"),
    "emulatorsched": ("emulator", None),
    "iothreadsched": ("iothreads", "iothreads"),
}
"""Element: the table of its threads, and the attribute that lists them."""

_THREADS: Final = f"metadata/{{{NAMESPACE}}}vm/{{{NAMESPACE}}}threads"

_CLASSES: Final = {"batch", "idle", "fifo", "rr"}

_IO: Final = {
    "weight": "weight",
    "read_iops_sec": "read_operations",
    "write_iops_sec": "write_operations",
    "read_bytes_sec": "read_bytes",
    "write_bytes_sec": "write_bytes",
}


def tuning(reading: Reading) -> Tables:
    """Return everything that the host does for the VM beside the pins."""
    keys: Tables = {}
    shares = reading.root.find("cputune/shares")
    if shares is not None:
        reading.read(shares)
        keys["shares"] = number(shares.text, shares.path)
    for part in (_bandwidths(reading), _schedulers(reading)):
        for key, table in part.items():
            keys.setdefault(key, {}).update(table)
    keys |= _memory(reading) | _io(reading)
    return {"tuning": keys} if keys else {}


def _bandwidths(reading: Reading) -> Tables:
    table: Tables = {}
    for prefix, key in _BANDWIDTHS.items():
        for what in ("period", "quota"):
            element = reading.root.find(f"cputune/{prefix}{what}")
            if element is None:
                continue
            if element.text.strip().startswith("-"):
                reading.decide(element, element.path, "no limit, as by default")
            else:
                reading.read(element)
                table.setdefault(key, {})[what] = number(element.text, element.path)
    return table


def _schedulers(reading: Reading) -> Tables:
    """Return classes of all threads of a kind: one for some of them has no word in vm.toml."""
    table: Tables = {}
    for tag, (key, listed) in _SCHEDULERS.items():
        found = list(reading.root.all(f"cputune/{tag}"))
        if len(found) != 1 or found[0].get("scheduler") not in _CLASSES:
            continue
        (element,) = found
        if listed is not None and not _is_of_all(reading, element, listed):
            continue
        reading.read(element, "scheduler", *([] if listed is None else [listed]))
        table[key] = {"scheduler": element.get("scheduler")}
        if element.get("priority") is not None:
            reading.read(element, "priority")
            table[key]["priority"] = number(element.get("priority", ""), f"{element.path}@priority")
    return _in_metadata(reading) | table


def _in_metadata(reading: Reading) -> Tables:
    """Return the class of the vCPUs that kvmhooks' own metadata asks for."""
    element = reading.root.find(_THREADS)
    value = "" if element is None else (element.get("vcpus") or "").strip()
    if element is None or not SETTINGS["threads.vcpus"].allows(value):
        return {}
    reading.read(element, "vcpus")
    scheduler, _, priority = value.partition(":")
    return {"vcpus": {"scheduler": scheduler, "priority": int(priority)}}


def _is_of_all(reading: Reading, element: Element, listed: str) -> bool:
    """Return whether a class is that of every vCPU or iothread."""
    try:
        named = CpuSet.parse(element.get(listed, ""))
    except ValueFormatError:
        return False
    if listed == "vcpus":
        return named == CpuSet(range(vcpus_of(reading.root)))
    known = {pin.get("iothread") for pin in reading.root.all("cputune/iothreadpin")}
    return bool(named) and {str(cpu) for cpu in named} >= known


def _memory(reading: Reading) -> Tables:
    table: Tables = {}
    for tag, key in _MEMORY.items():
        element = reading.root.find(f"memtune/{tag}")
        if element is not None:
            reading.find("memtune")
            reading.read(element, "unit")
            size = amount(element, element.text.strip(), element.get("unit") or "KiB")
            table[key] = str(ByteSize(size // 1024 * 1024))
    return {"memory": table} if table else {}


def _io(reading: Reading) -> Tables:
    root = reading.root
    if root.find("blkiotune") is None:
        return {}
    reading.find("blkiotune")
    keys: Tables = {}
    weight = root.find("blkiotune/weight")
    if weight is not None:
        reading.read(weight)
        keys["weight"] = number(weight.text, weight.path)
    devices = []
    for element in root.all("blkiotune/device"):
        path = element.find("path")
        if path is None:
            continue
        reading.read(element)
        reading.read(path)
        table: Tables = {"path": path.text}
        for tag, key in _IO.items():
            child = element.find(tag)
            if child is not None:
                reading.read(child)
                value = number(child.text, child.path)
                table[key] = str(ByteSize(value)) if key.endswith("bytes") else value
        devices.append(table)
    if devices:
        keys["device"] = devices
    return {"io": keys} if keys else {}
