"""Disks, interfaces, the console, and what kvmhooks gives addresses and controllers for."""

from __future__ import annotations

from typing import Any, Final

from kvmhooks.domain.import_cpu import number
from kvmhooks.domain.reading import Reading, fits
from kvmhooks.domain.source import Element
from kvmhooks.spec.model import InterfaceName, MacAddress

Tables = dict[str, Any]

_CACHES: Final = {"none", "writeback", "writethrough", "unsafe"}
_OUR_CONTROLLERS: Final = {"pci", "virtio-serial", "usb", "sata", "ide"}


def disks(reading: Reading) -> Tables:
    """The virtio disks of files and block devices."""
    said = [
        table
        for order, element in enumerate(reading.root.all("devices/disk"), 1)
        if (table := _disk(reading, element, order)) is not None
    ]
    return {"disk": said} if said else {}


def _disk(reading: Reading, element: Element, order: int) -> Tables | None:
    kind = element.get("type")
    source = element.find("source")
    path = None if source is None else source.get("file") or source.get("dev")
    driver = element.find("driver")
    form = "raw" if driver is None else driver.get("type") or "raw"
    target = element.find("target")
    bus = None if target is None else target.get("bus")
    is_known = (
        kind in {"file", "block"}
        and element.get("device", "disk") == "disk"
        and bus == "virtio"
        and path
        and form in {"raw", "qcow2"}
    )
    if not is_known or source is None or target is None:
        reading.leave(element, "disks are virtio disks of raw or qcow2 files and block devices")
        return None
    reading.read(element, "type", "device")
    reading.read(source, "file", "dev")
    reading.read(target, "bus")
    reading.decide_attribute(target, "dev", "disks are lettered in their order")
    said: Tables = {"path": path}
    if form != "raw":
        said["format"] = form
    said |= _driver(reading, driver)
    if element.find("readonly") is not None:
        reading.read(element.find("readonly") or element)
        said["readonly"] = True
    for child in element.children:
        if child.tag == "boot" and child.get("order") == str(order):
            reading.decide(child, "devices/disk/boot", "disks are tried in their order")
    return said


def _driver(reading: Reading, driver: Element | None) -> Tables:
    if driver is None:
        return {"cache": "writeback"}
    reading.read(driver, "type")
    reading.expect(driver, {"name": "qemu"})
    reading.expect(driver, {"discard": "unmap"})
    said: Tables = {}
    cache = driver.get("cache", "writeback")
    if cache == "default":
        cache = "writeback"
    if cache in _CACHES:
        reading.read(driver, "cache")
        said["cache"] = cache
    if driver.get("io") in {"io_uring", "native", "threads"}:
        reading.read(driver, "io")
        said["aio"] = driver.get("io")
    for key in ("iothread", "queues"):
        text = driver.get(key)
        if text is not None:
            reading.read(driver, key)
            said[key] = number(text, f"{driver.path}@{key}")
    return said


def nets(reading: Reading) -> Tables:
    """The virtio interfaces on taps and bridges, and QEMU's own NAT."""
    said = [
        table
        for element in reading.root.all("devices/interface")
        if (table := _net(reading, element)) is not None
    ]
    return {"net": said} if said else {}


def _net(reading: Reading, element: Element) -> Tables | None:
    kind = element.get("type", "")
    model = element.find("model")
    source = element.find("source")
    target = element.find("target")
    holder, name = {"bridge": (source, "bridge"), "ethernet": (target, "dev")}.get(kind, (None, ""))
    device = None if holder is None else holder.get(name)
    is_known = kind == "user" or (kind in {"bridge", "ethernet"} and fits(InterfaceName, device))
    is_virtio = model is not None and model.get("type") == "virtio"
    if not is_known or not is_virtio or model is None:
        reading.leave(element, "interfaces are virtio ones on taps, bridges or QEMU's own NAT")
        return None
    reading.read(element, "type")
    reading.read(model, "type")
    said: Tables = {"type": {"ethernet": "tap"}.get(kind, kind)}
    if holder is not None:
        reading.read(holder, name)
        if kind == "ethernet":
            reading.expect(holder, {"managed": "no"})
        said["device"] = device
    mac = element.find("mac")
    if mac is not None:
        address = (mac.get("address") or "").lower()
        if fits(MacAddress, address):
            reading.read(mac, "address")
            said["mac"] = address
    return said


def console(reading: Reading) -> Tables:
    """The console: a serial port, a virtio one, or none."""
    kinds: list[str] = []
    for path in ("devices/serial", "devices/console"):
        for element in reading.root.all(path):
            target = element.find("target")
            kind = "serial" if target is None else target.get("type") or "serial"
            is_known = element.get("type") == "pty" and kind in {"serial", "isa-serial", "virtio"}
            if kind.removeprefix("isa-") in kinds and path.endswith("console") and is_known:
                _read_port(reading, element)  # the same port, under its other name
            elif not kinds and is_known:
                _read_port(reading, element)
                kinds.append(kind.removeprefix("isa-"))
    return {"console": {"type": kinds[0] if kinds else "none"}}


def others(reading: Reading) -> Tables:
    """What follows from the devices: addresses, names and controllers."""
    devices = reading.root.find("devices")
    for element in [] if devices is None else devices.children:
        if element.tag == "controller":
            kind = element.get("type", "")
            if kind in _OUR_CONTROLLERS:
                reading.decide(
                    element, f"devices/controller[{kind}]", "kvmhooks gives each device its port"
                )
        elif element.tag == "memballoon" and element.get("model") == "none":
            reading.read(element, "model")
        for child in element.walk():
            if child.tag == "address" and child.get("type") == "pci":
                if child.parent is element and element.tag != "hostdev":
                    what = f"devices/{element.tag}/address"
                    reading.decide(child, what, "kvmhooks gives its own: a guest may notice")
            elif child.tag == "alias":
                reading.decide(child, f"devices/{element.tag}/alias", "a running domain's own")
    return {}


def _read_port(reading: Reading, element: Element) -> None:
    reading.read(element, "type", "tty")
    for target in element.all("target"):
        reading.read(target, "type", "port")
        for model in target.all("model"):
            reading.expect(model, {"name": "isa-serial"})
