"""Memory devices: DIMMs, and memory that grows and shrinks (virtio-mem).

https://libvirt.org/formatdomain.html#memory-devices
"""

from __future__ import annotations

from typing import Final

from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.amounts import size_of
from kvmhooks.libvirt.importing.reading import Reading
from kvmhooks.machine.domain_reading import Tables, number
from kvmhooks.values import ByteSize

_MIB: Final = 1 << 20
_ORDINARY: Final = 4096
_KEYS: Final = {"dimm": "dimm", "virtio-mem": "virtio"}
"""libvirt's word for a model, and the key of ``[memory]``."""


def memory_devices(reading: Reading) -> Tables:
    """Return ``[[memory.dimm]]`` and ``[[memory.virtio]]``."""
    found: dict[str, list[Tables]] = {}
    has_pages = reading.root.find("memoryBacking/hugepages") is not None
    for element in reading.root.all("devices/memory"):
        key = _KEYS.get(element.get("model", ""))
        target = element.find("target")
        if key is None or target is None:
            continue
        why = _unknown(element, target, has_pages=has_pages)
        if why:
            reading.leave(element, why)
            continue
        reading.read(element, "model")
        reading.read(target)
        _source(reading, element)
        found.setdefault(key, []).append(_table(reading, target, key))
    return {**found}


def _table(reading: Reading, target: Element, key: str) -> Tables:
    size = _amount(reading, target, "size")
    table: Tables = {"size": str(ByteSize(size))}
    node = target.find("node")
    if node is not None:
        cell = number(reading.read(node).text.strip(), node.path)
        table |= {"cell": cell} if cell else {}
    if key == "virtio":
        requested, block = (_amount(reading, target, name) for name in ("requested", "block"))
        _amount(reading, target, "current")  # of a guest that runs
        table |= {"requested": str(ByteSize(requested))} if requested != size else {}
        table |= {"block": str(ByteSize(block))} if block != 2 * _MIB else {}
    return table


def _amount(reading: Reading, target: Element, name: str) -> int:
    element = target.find(name)
    return 0 if element is None else size_of(reading.read(element, "unit"))


def _source(reading: Reading, element: Element) -> None:
    for source in element.all("source"):
        reading.read(source)
        for child in source.children:
            if child.name == "nodemask":
                reading.decide(child, "devices/memory/source/nodemask", "it is its cell's node")
            elif child.name == "pagesize":
                reading.read(child, "unit")


def _unknown(element: Element, target: Element, *, has_pages: bool) -> str:
    """Return what vm.toml has no word for; empty where it says all."""
    page = element.find("source/pagesize")
    if size_of(page) != _ORDINARY if page is not None else has_pages:
        return "what is added is of ordinary pages"
    sizes = {name: size_of(target.find(name)) for name in ("size", "block", "requested")}
    if not sizes["size"] or sizes["size"] % (2 * _MIB):
        return "sizes of whole multiples of 2MiB are known"
    if element.get("model") == "virtio-mem":
        block = sizes["block"]
        if block < 2 * _MIB or block & (block - 1):
            return "blocks of a power of two from 2MiB on are known"
        if sizes["size"] % block or sizes["requested"] % block:
            return "sizes of whole blocks are known"
    return ""
