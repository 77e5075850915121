"""The units that systemd has loaded, and the CPUs that each is to run on.

``ListUnitsByPatterns`` and the properties are those of org.freedesktop.systemd1(5). The property
``CPUAffinity`` is a bit mask from the lowest CPU on; with ``CPUAffinity=numa`` it is that of the
nodes (``property_get_cpu_affinity()``, src/core/dbus-execute.c). A unit that is not loaded is not
told of.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from kvmhooks.isolate.system.dbus import MANAGER, BusError, Systemd
from kvmhooks.isolate.system.dbus_messages import Reader, Writer
from kvmhooks.isolate.system.unit_files import KINDS
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable

_AT_ONCE: Final = 32
"""Calls under way: the bus allows 128 (``max_replies_per_connection``, dbus-daemon(1))."""

_PROPERTIES: Final = "org.freedesktop.DBus.Properties"


def affinities(systemd: Systemd, seconds: float) -> tuple[dict[str, CpuSet], bool]:
    """Return the units with ``CPUAffinity=``, and whether all were looked at in this time.

    Raises ``BusError``.
    """
    until = time.monotonic() + seconds
    found: dict[str, CpuSet] = {}
    every = list(_units(systemd))
    for ending, kind in KINDS.items():
        units = [unit for unit in every if unit[0].endswith(f".{ending}")]
        for at in range(0, len(units), _AT_ONCE):
            if time.monotonic() >= until:
                return found, False
            found |= _masks(systemd, dict(units[at : at + _AT_ONCE]), kind)
    return found, True


def _units(systemd: Systemd) -> Iterable[tuple[str, str]]:
    """Yield name and object of each unit that is loaded and of such a kind."""
    body = Writer()
    with body.array(4):  # in whatever state
        pass
    with body.array(4):
        for ending in KINDS:
            body.text(f"*.{ending}")
    (reader,) = systemd.ask([MANAGER], "ListUnitsByPatterns", "asas", body.data)
    if reader is None:
        raise BusError("systemd: ListUnitsByPatterns: refused")
    reader.uint32()
    reader.align(8)
    while not reader.is_done:
        reader.align(8)
        name, _, load, _, _, _, path = (reader.text() for _ in range(7))
        reader.uint32()
        reader.text()
        reader.text()
        if load == "loaded":
            yield name, path


def _masks(systemd: Systemd, units: dict[str, str], kind: str) -> dict[str, CpuSet]:
    """Return the units of these that have a mask; one that has gone meanwhile has none."""
    body = Writer()
    body.text(f"{MANAGER[0]}.{kind}")
    body.text("CPUAffinity")
    objects = [(MANAGER[0], path, _PROPERTIES) for path in units.values()]
    masks = map(_mask, systemd.ask(objects, "Get", "ss", body.data))
    return {name: cpus for name, cpus in zip(units, masks, strict=True) if cpus}


def _mask(reader: Reader | None) -> CpuSet:
    if reader is None or reader.signature() != "ay":
        return CpuSet()
    return CpuSet.from_mask(int.from_bytes(reader.raw(), "little"))
