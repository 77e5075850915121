"""Devices of the host that the guest has: PCI functions, mediated devices, USB."""

from __future__ import annotations

from typing import Any

from kvmhooks.domain.reading import Reading, fits
from kvmhooks.domain.source import Element
from kvmhooks.errors import ValueFormatError
from kvmhooks.spec.forms import Uuid
from kvmhooks.values import PciAddress

Tables = dict[str, Any]


def devices(reading: Reading) -> Tables:
    """``[[pci]]``, ``[[mdev]]`` and ``[[host_usb]]``."""
    return {**_pci(reading), **_mediated(reading), **_host_usb(reading)}


def _pci(reading: Reading) -> Tables:
    said = []
    for element in reading.root.all("devices/hostdev"):
        source = element.find("source/address")
        address = None if source is None else _address(source)
        if element.get("type") != "pci" or source is None or address is None:
            continue
        reading.read(element, "mode", "type", "managed")
        for holder in element.all("source"):
            reading.read(holder)
        reading.read(source, "type", "domain", "bus", "slot", "function")
        table: Tables = {"address": str(address)}
        if element.get("managed", "no") != "yes":
            table["managed"] = False
        driver, rom = element.find("driver"), element.find("rom")
        if driver is not None:
            reading.expect(driver, {"name": "vfio"})
        if rom is not None:
            table |= _rom(reading, rom)
        said.append(table)
    return {"pci": said} if said else {}


def _address(element: Element) -> PciAddress | None:
    """The address of a device of the host; the domain may be left out."""
    said = [element.get(name, "0") for name in ("domain", "bus", "slot", "function")]
    try:
        domain, bus, slot, function = (int(text, 0) for text in said)
        return PciAddress.parse(f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}")
    except (ValueError, ValueFormatError):
        return None


def _rom(reading: Reading, rom: Element) -> Tables:
    said: Tables = {}
    if rom.get("bar") in {"on", "off"}:
        reading.read(rom, "bar")
        said["rom_bar"] = rom.get("bar") == "on"
    if rom.get("file") is not None:
        reading.read(rom, "file")
        said["rom"] = rom.get("file")
    return said


def _mediated(reading: Reading) -> Tables:
    said = []
    for element in reading.root.all("devices/hostdev"):
        source = element.find("source/address")
        uuid = None if source is None else (source.get("uuid") or "").lower()
        if element.get("type") != "mdev" or source is None or not fits(Uuid, uuid):
            continue
        if element.get("model") != "vfio-pci":
            continue
        reading.read(element, "mode", "type", "model", "display", "managed")
        for holder in element.all("source"):
            reading.read(holder)
        reading.read(source, "uuid")
        said.append({"uuid": uuid, "display": element.get("display") == "on"})
    return {"mdev": said} if said else {}


def _host_usb(reading: Reading) -> Tables:
    said = []
    for element in reading.root.all("devices/hostdev"):
        vendor, product = element.find("source/vendor"), element.find("source/product")
        if element.get("type") != "usb" or vendor is None or product is None:
            continue
        numbers = [(each.get("id") or "").removeprefix("0x").lower() for each in (vendor, product)]
        reading.read(element, "mode", "type", "managed")
        reading.read(vendor, "id")
        reading.read(product, "id")
        for source in element.all("source"):
            reading.read(source)
        said.append({"id": ":".join(numbers)})
    return {"host_usb": said} if said else {}
