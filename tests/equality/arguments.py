"""QEMU's argument list as the machine that it describes: dicts that can be compared.

Names (ids, node names) mean nothing to a guest: each reference to a backend is replaced by what the
backend is, and buses are named by the controller that they belong to. Values come in three
spellings (JSON, ``key=value``, libvirt's and ours): numbers, switches and sizes are made one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

Machine = dict[str, Any]

IMPLIED: Final = {
    "name": "guest", "machine": "type", "accel": "accel", "cpu": "model", "smp": "cpus",
    "m": "size", "numa": "type", "sandbox": "enable", "object": "qom-type", "blockdev": "driver",
    "device": "driver", "netdev": "type", "chardev": "backend", "audiodev": "driver",
    "tpmdev": "type", "fsdev": "fsdriver", "mon": "chardev", "boot": "order", "rtc": "base",
    "overcommit": "mem-lock", "action": "action", "msg": "timestamp", "fw_cfg": "name",
    "smbios": "type", "vnc": "vnc", "spice": "port", "global": "driver", "run-with": "user",
    "add-fd": "fd",
}  # fmt: skip
"""The key of a first value without one (``QemuOptsList.implied_opt_name``, and the parsers of
``-accel``, ``-cpu`` and ``-numa``)."""

SINGLE: Final = {
    "-uuid", "-bios", "-kernel", "-initrd", "-append", "-display", "-S", "-daemonize", "-pidfile",
    "-no-user-config", "-nodefaults", "-no-shutdown", "-no-reboot", "-no-acpi", "-no-hpet", "-qmp",
    "-k", "-watchdog-action", "-runas", "-dtb", "-vga", "-incoming", "-enable-fips",
    "-loadvm", "-nographic", "-chroot", "-only-migratable", "-preconfig",
}  # fmt: skip
"""Options whose value is one text, or that have none."""

BACKENDS: Final = ("object", "blockdev", "netdev", "chardev", "audiodev", "tpmdev", "fsdev")
NAMES: Final = ("id", "node-name")

_SWITCH: Final = {"on": True, "off": False, "yes": True, "no": False}
_NUMBER: Final = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)", re.ASCII)
_SIZE: Final = re.compile(r"(\d+)([bkKmMgGtT]?)", re.ASCII)
_SHIFT: Final = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def machine_of(argv: Sequence[str]) -> Machine:
    """The machine that QEMU makes of ``argv``, the program left out."""
    options: dict[str, list[dict[str, Any]]] = {}
    singles: dict[str, Any] = {}
    for option, value in _options(argv):
        if option in SINGLE:
            singles[option] = True if value is None else value
        else:
            options.setdefault(option[1:], []).append(_parsed(option[1:], value or ""))
    singles = _renamed(singles, options)
    backends = {
        entry[name]: (kind, entry)
        for kind in BACKENDS
        for entry in options.get(kind, ())
        for name in NAMES
        if name in entry
    }
    used: set[str] = set()
    buses = _buses(options.get("device", ()))
    devices = [
        _resolved(_on_its_bus(_on_a_bus(device, options["device"]), buses), backends, used)
        for device in options.get("device", ())
    ]
    machine: Machine = dict(singles)
    for name, entries in options.items():
        if name not in {*BACKENDS, "device", "numa", "smbios", "fw_cfg", "global"}:
            merged = {key: value for entry in entries for key, value in entry.items()}
            machine[name] = _resolved(merged, backends, used)
    machine["numa"] = {
        _numa(entry): _value(entry["val"])
        if entry["type"] == "dist"
        else _resolved(_cpus(entry), backends, used)
        for entry in options.get("numa", ())
    }
    machine["cpu"] = {**machine.get("cpu", {}), **_of_the_cpu(options)}
    for name in ("smbios", "fw_cfg"):
        machine[name] = _ordered(options.get(name, ()))
    machine["global"] = _ordered(
        each for each in options.get("global", ()) if not _CPU.match(str(each))
    )
    machine["device"] = {_place(device, devices[:at]): device for at, device in enumerate(devices)}
    machine["m"] = {key: _bytes(value, unit="m") if key != "slots" else value
                 for key, value in machine.get("m", {}).items()}  # fmt: skip
    machine["unused"] = _by_kind(
        (kind, _resolved(entry, backends, used))
        for name, (kind, entry) in backends.items()
        if name not in used and "node-name" not in entry
    )
    return machine


def differences(ours: Any, theirs: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each place where two machines differ, with both values; None for what is not there."""
    if isinstance(ours or theirs, dict) and isinstance(ours or {}, dict) is isinstance(
        theirs or {}, dict
    ):
        ours, theirs = ours or {}, theirs or {}
        for key in sorted({*ours, *theirs}):
            inner = f"{at}/{key}" if at else str(key)
            yield from differences(ours.get(key), theirs.get(key), inner)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (own, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(own, other, f"{at}[{index}]")
    elif ours != theirs:
        yield at, ours, theirs


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    words = list(argv)
    while words:
        option = words.pop(0)
        assert option.startswith("-"), (option, argv)
        has_value = bool(words) and not (words[0].startswith("-") and option in _FLAGS)
        yield option, words.pop(0) if has_value and option not in _FLAGS else None


_FLAGS: Final = {
    "-S", "-daemonize", "-no-user-config", "-nodefaults", "-no-shutdown", "-no-reboot", "-no-acpi",
    "-no-hpet", "-enable-fips", "-nographic", "-only-migratable", "-preconfig",
}  # fmt: skip


def _parsed(option: str, text: str) -> dict[str, Any]:
    if text.startswith("{"):
        return {key: _value(value) for key, value in _flat(json.loads(text))}
    tables: dict[str, Any] = {}
    words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
    for at, word in enumerate(words):
        key, equals, value = word.partition("=")
        if not equals and at == 0:
            key, value = IMPLIED[option], word
        elif not equals:
            key, value = word, "on"
        if key == "cpus" and option == "numa" and key in tables:
            value = f"{tables[key]},{value}"
        tables[key] = value if option in {"numa", "global"} else _value(value)
    return tables


def _flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested objects as QEMU's own dotted keys; lists stay."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [
            {key: _value(inner) for key, inner in _flat(each)}
            if isinstance(each, dict)
            else _value(each)
            for each in value
        ]
    if isinstance(value, str):
        if value in _SWITCH:
            return _SWITCH[value]
        if _NUMBER.fullmatch(value):
            return int(value, 0) if not re.fullmatch(r"0\d+", value) else value
    return value


def _bytes(value: Any, *, unit: str) -> Any:
    found = _SIZE.fullmatch(str(value))
    return value if found is None else int(found[1]) << _SHIFT[(found[2] or unit).lower()]


def _numa(entry: Mapping[str, Any]) -> str:
    """Return what tells one ``-numa`` from others."""
    keys = ("type", "nodeid", "src", "dst", "node-id", "socket-id", "core-id", "thread-id", "level")
    return " ".join(str(entry[key]) for key in keys if key in entry)


def _cpus(entry: dict[str, Any]) -> dict[str, Any]:
    values = {key: _value(value) for key, value in entry.items()}
    if "cpus" in entry:
        values["cpus"] = entry["cpus"]
    return values


def _renamed(singles: Machine, options: dict[str, list[dict[str, Any]]]) -> Machine:
    """Older spellings as newer ones (docs/about/removed-features.rst of QEMU)."""
    machine = options.setdefault("machine", [{}])
    if singles.pop("-no-hpet", False):
        machine.append({"hpet": False})
    for entry in machine:
        if "kernel_irqchip" in entry:
            entry["kernel-irqchip"] = entry.pop("kernel_irqchip")
    if "-watchdog-action" in singles:
        options.setdefault("action", []).append({"watchdog": singles.pop("-watchdog-action")})
    for device in options.get("device", ()):
        if device["driver"] == "virtio-iommu":
            device["driver"] = "virtio-iommu-pci"
    return singles


def _of_the_cpu(options: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Properties of the CPU that are given by ``-global MODEL-x86_64-cpu.property=value``."""
    return {
        key.partition(".")[2]: value
        for each in options.get("global", ())
        for key, value in each.items()
        if _CPU.match(str(each))
    }


_CPU: Final = re.compile(r"\{'[^']*-x86_64-cpu\.")


def _buses(devices: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Device id: what tells it from others, for the buses that are named after it."""
    places: dict[str, str] = {}
    for device in devices:
        name = device.get("id")
        if isinstance(name, str) and not name.startswith("pci."):
            places[name] = f"{device['driver']}@{device.get('bus', '')}/{_slot(device)}"
    return places


def _slot(device: Mapping[str, Any]) -> str:
    """``slot.function``: QEMU takes ``0x1`` and ``0x1.0x2``."""
    address = device.get("addr")
    if address is None:
        return ""
    slot, _, function = str(address).partition(".")
    return f"{int(slot, 0):x}.{int(function or '0', 0):x}"


def _on_a_bus(device: Mapping[str, Any], devices: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """A device whose bus is not named, on the only one of its kind."""
    wanted = {"virtconsole": "virtio-serial-pci", "virtserialport": "virtio-serial-pci"}
    owners = [each for each in devices if each["driver"] == wanted.get(device["driver"])]
    if "bus" in device or len(owners) != 1:
        return device
    return {**device, "bus": f"{owners[0]['id']}.0"}


def _on_its_bus(device: Mapping[str, Any], buses: Mapping[str, str]) -> dict[str, Any]:
    placed = dict(device)
    if "addr" in placed:
        placed["addr"] = _slot(placed)
    bus = placed.get("bus")
    if isinstance(bus, str):
        owner, _, number = bus.rpartition(".")
        if owner in buses:
            placed["bus"] = f"{buses[owner]}.{number}"
    return placed


def _resolved(entry: Any, backends: Mapping[str, tuple[str, Any]], used: set[str]) -> Any:
    """An entry without its name, each name of a backend in it replaced by the backend."""
    if isinstance(entry, dict):
        return {
            key: _resolved(value, backends, used)
            for key, value in entry.items()
            if key not in NAMES
        }
    if isinstance(entry, list):
        return [_resolved(each, backends, used) for each in entry]
    if isinstance(entry, str) and entry in backends:
        used.add(entry)
        kind, backend = backends[entry]
        if backend.get("driver") == "throttle":  # see ``allowed``: throttle-group
            return _resolved(backend["file"], backends, used)
        return {"a": kind, **_resolved(backend, backends, used)}
    return entry


def _place(device: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Return what tells a device from others: its bus and address, or its number among its kind."""
    driver = device["driver"]
    where = [str(device[key]) for key in ("bus", "addr", "port", "nr", "scsi-id", "lun", "unit",
             "node") if key in device and not isinstance(device[key], dict)]  # fmt: skip
    if "addr" in device:
        return f"{driver} {device.get('bus', 'pcie.0')}/{device['addr']}"
    alike = sum(other["driver"] == driver and "addr" not in other for other in others)
    return " ".join([driver, *(where if driver == "pcie-root-port" else []), str(alike)])


def _by_kind(entries: Iterator[tuple[str, dict[str, Any]]]) -> dict[str, list[Any]]:
    """Return the things that no device refers to, by what they are."""
    kinds: dict[str, list[Any]] = {}
    for kind, entry in entries:
        kinds.setdefault(str(entry.get("qom-type", kind)), []).append(entry)
    return {kind: _ordered(each) for kind, each in kinds.items()}


def _ordered(entries: Any) -> list[Any]:
    return sorted(entries, key=lambda entry: json.dumps(entry, sort_keys=True, default=str))
