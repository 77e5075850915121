"""Devices of the host that the guest has: PCI functions, mediated devices, USB."""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.reading import Reading
from kvmhooks.machine.domain_reading import Tables, fits
from kvmhooks.spec.forms import Uuid
from kvmhooks.values import PciAddress


def devices(reading: Reading) -> Tables:
    """Return ``[[pci]]``, ``[[mdev]]`` and ``[[host_usb]]``."""
    return {**_pci(reading), **_mediated(reading), **_host_usb(reading)}


def _pci(reading: Reading) -> Tables:
    tables = []
    for element in reading.root.all("devices/hostdev"):
        source = element.find("source/address")
        address = None if source is None else address_of(source)
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
        tables.append(table)
    return {"pci": tables} if tables else {}


def address_of(element: Element) -> PciAddress | None:
    """Return the address of a device of the host; the domain may be left out."""
    parts = [element.get(name, "0") for name in ("domain", "bus", "slot", "function")]
    try:
        domain, bus, slot, function = (int(text, 0) for text in parts)
        return PciAddress.parse(f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}")
    except (ValueError, ValueFormatError):
        return None


def _rom(reading: Reading, rom: Element) -> Tables:
    table: Tables = {}
    if rom.get("bar") in {"on", "off"}:
        reading.read(rom, "bar")
        table["rom_bar"] = rom.get("bar") == "on"
    if rom.get("file") is not None:
        reading.read(rom, "file")
        table["rom"] = rom.get("file")
    return table


def _mediated(reading: Reading) -> Tables:
    tables = []
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
        tables.append({"uuid": uuid, "display": element.get("display") == "on"})
    return {"mdev": tables} if tables else {}


def _host_usb(reading: Reading) -> Tables:
    tables = []
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
        tables.append({"id": ":".join(numbers)})
    return {"host_usb": tables} if tables else {}
