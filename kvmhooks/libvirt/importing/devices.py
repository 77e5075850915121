"""Disks, interfaces, the console, and what kvmhooks gives addresses and controllers for."""

from __future__ import annotations

from typing import Final

from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.reading import Reading
from kvmhooks.machine.domain_reading import Tables, fits, number
from kvmhooks.spec.forms import InterfaceName, MacAddress, Serial
from kvmhooks.values import ByteSize

_CACHES: Final = {"none", "writeback", "writethrough", "unsafe"}
_OUR_CONTROLLERS: Final = {"pci", "virtio-serial", "usb", "sata", "ide", "scsi", "nvme"}
_ADDRESSES: Final = {"pci", "usb", "drive", "virtio-serial"}
_BUSES: Final = {"virtio": "virtio-blk", "scsi": "virtio-scsi", "sata": "sata"}
_LIMITS: Final = {
    "total_bytes_sec": "bytes", "read_bytes_sec": "read_bytes", "write_bytes_sec": "write_bytes",
    "total_iops_sec": "operations", "read_iops_sec": "read_operations",
    "write_iops_sec": "write_operations",
}  # fmt: skip
_MODES: Final = {"bridge", "vepa", "private", "passthrough"}
_NETS: Final = {
    "user": ("user", None, None),
    "bridge": ("bridge", "source", "bridge"),
    "ethernet": ("tap", "target", "dev"),
    "direct": ("macvtap", "source", "dev"),
}
"""libvirt's word for an interface: vm.toml's, and where its device is named."""


def disks(reading: Reading) -> Tables:
    """Return the disks of files and block devices."""
    drivers = _scsi_drivers(reading.root)
    tables = [
        table
        for order, element in enumerate(reading.root.all("devices/disk"), 1)
        if (table := _disk(reading, element, order, drivers)) is not None
    ]
    return {"disk": tables} if tables else {}


def _disk(
    reading: Reading, element: Element, order: int, scsi_drivers: dict[str, Element]
) -> Tables | None:
    kind = element.get("type")
    source = element.find("source")
    path = None if source is None else source.get("file") or source.get("dev")
    driver = element.find("driver")
    form = "raw" if driver is None else driver.get("type") or "raw"
    target = element.find("target")
    bus = _BUSES.get("" if target is None else target.get("bus", ""))
    device = element.get("device", "disk")
    is_known = (
        kind in {"file", "block"}
        and (device == "disk" or (device == "cdrom" and bus != "virtio-blk"))
        and bus is not None
        and path
        and form in {"raw", "qcow2"}
    )
    if not is_known or source is None or target is None:
        reading.leave(
            element, "disks are raw or qcow2 files and block devices on virtio, virtio-scsi or sata"
        )
        return None
    reading.read(element, "type", "device")
    reading.read(source, "file", "dev")
    reading.read(target, "bus")
    reading.decide_attribute(target, "dev", "disks are lettered in their order")
    table: Tables = {"path": path}
    if form != "raw":
        table["format"] = form
    if device != "disk":
        table["device"] = device
    if bus != "virtio-blk":
        table["bus"] = bus
    table |= _driver(reading, driver) | _traits(reading, element)
    if bus == "virtio-scsi":
        table |= _of_controller(element, scsi_drivers)
    for child in element.children:
        if child.tag == "boot" and child.get("order") == str(order):
            reading.decide(child, "devices/disk/boot", "disks are tried in their order")
        elif child.tag == "boot":
            reading.read(child, "order")
            table["boot"] = number(child.get("order", ""), f"{child.path}@order")
    return table


def _traits(reading: Reading, element: Element) -> Tables:
    """Return a disk's keys besides its driver: read-only, shared, its serial number, its limits."""
    table: Tables = {}
    for tag, key in (("readonly", "readonly"), ("shareable", "shared")):
        found = element.find(tag)
        if found is not None:
            reading.read(found)
            table[key] = True
    serial = element.find("serial")
    if serial is not None and fits(Serial, serial.text.strip()):
        reading.read(serial)
        table["serial"] = serial.text.strip()
    block = element.find("blockio")
    size = None if block is None else block.get("logical_block_size")
    bytes_ = (
        1 if block is None or size is None else number(size, f"{block.path}@logical_block_size")
    )
    if block is not None and size is not None and bytes_ % 1024 == 0:
        reading.read(block, "logical_block_size")
        reading.expect(block, {"physical_block_size": size})
        table["logical_block"] = str(ByteSize(bytes_))
    throttle: Tables = {}
    tune = element.find("iotune")
    for child in [] if tune is None else tune.children:
        limit = _LIMITS.get(child.tag)
        count = 0 if limit is None else number(child.text, child.path)
        if tune is not None and limit is not None and count:
            if limit.endswith("bytes") and count % 1024:
                continue
            reading.read(tune)
            reading.read(child)
            throttle[limit] = str(ByteSize(count)) if limit.endswith("bytes") else count
    return {**table, "throttle": throttle} if throttle else table


def _scsi_drivers(root: Element) -> dict[str, Element]:
    """Return the drivers of the SCSI controllers that have one, by the controller's index."""
    found: dict[str, Element] = {}
    for controller in root.all("devices/controller"):
        driver = controller.find("driver")
        if controller.get("type") == "scsi" and driver is not None:
            found.setdefault(controller.get("index", "0"), driver)
    return found


def _of_controller(disk: Element, drivers: dict[str, Element]) -> Tables:
    """Return the queues and the iothread of the controller that a SCSI disk is on."""
    address = disk.find("address")
    driver = drivers.get("0" if address is None else address.get("controller", "0"))
    return {
        key: number(driver.get(key, ""), f"{driver.path}@{key}")
        for key in ("iothread", "queues")
        if driver is not None and driver.get(key) is not None
    }


def _driver(reading: Reading, driver: Element | None) -> Tables:
    if driver is None:
        return {"cache": "writeback", "discard": False}
    reading.read(driver, "type")
    reading.expect(driver, {"name": "qemu"})
    table: Tables = {}
    if driver.get("discard", "ignore") in {"unmap", "ignore"}:
        reading.read(driver, "discard")
        table["discard"] = driver.get("discard") == "unmap"
    if driver.get("detect_zeroes") in {"off", "on", "unmap"}:
        reading.read(driver, "detect_zeroes")
        table["detect_zeroes"] = driver.get("detect_zeroes")
    cache = driver.get("cache", "writeback")
    if cache == "default":
        cache = "writeback"
    if cache in _CACHES:
        reading.read(driver, "cache")
        table["cache"] = cache
    if driver.get("io") in {"io_uring", "native", "threads"}:
        reading.read(driver, "io")
        table["aio"] = driver.get("io")
    for key in ("iothread", "queues", "queue_size"):
        text = driver.get(key)
        if text is not None:
            reading.read(driver, key)
            table[key] = number(text, f"{driver.path}@{key}")
    return table


def nets(reading: Reading) -> Tables:
    """Return the interfaces on taps, bridges and macvtaps, and QEMU's own NAT."""
    tables = [
        table
        for element in reading.root.all("devices/interface")
        if (table := _net(reading, element)) is not None
    ]
    return {"net": tables} if tables else {}


def _net(reading: Reading, element: Element) -> Tables | None:
    word, place, name = _NETS.get(element.get("type", ""), ("", None, None))
    model = element.find("model")
    holder = None if place is None else element.find(place)
    device = None if holder is None or name is None else holder.get(name)
    is_known = word == "user" or (bool(word) and fits(InterfaceName, device))
    kind = "" if model is None else model.get("type", "")
    if not is_known or kind not in {"virtio", "e1000e"} or model is None:
        reading.leave(
            element,
            "interfaces are virtio or e1000e ones on taps, bridges, macvtaps or QEMU's own NAT",
        )
        return None
    reading.read(element, "type")
    reading.read(model, "type")
    backend = element.find("backend")
    if word == "user" and backend is not None and backend.get("type") == "passt":
        reading.read(backend, "type")
        word = "passt"
    table: Tables = {"type": word}
    if kind != "virtio":
        table["model"] = kind
    if holder is not None and name is not None:
        reading.read(holder, name)
        if word == "tap":
            reading.expect(holder, {"managed": "no"})
        if word == "macvtap" and holder.get("mode", "vepa") in _MODES:
            reading.read(holder, "mode")
            table["mode"] = holder.get("mode", "vepa")
        table["device"] = device
    table |= _net_driver(reading, element)
    mac = element.find("mac")
    if mac is not None:
        address = (mac.get("address") or "").lower()
        if fits(MacAddress, address):
            reading.read(mac, "address")
            table["mac"] = address
    return table


def _net_driver(reading: Reading, element: Element) -> Tables:
    table: Tables = {}
    driver, mtu = element.find("driver"), element.find("mtu")
    if driver is not None:
        reading.read(driver)
        if driver.get("name") in {"vhost", "qemu"}:
            reading.read(driver, "name")
            table["vhost"] = driver.get("name") == "vhost"
        for key in ("queues", "rx_queue_size", "tx_queue_size"):
            if driver.get(key) is not None:
                reading.read(driver, key)
                table[key] = number(driver.get(key, ""), f"{driver.path}@{key}")
    if mtu is not None:
        reading.read(mtu, "size")
        table["mtu"] = number(mtu.get("size", ""), f"{mtu.path}@size")
    return table


def console(reading: Reading) -> Tables:
    """Return the console: a serial port, a virtio one, or none."""
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
    """Note what follows from the devices: addresses, names and controllers."""
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
            if child.tag == "address" and child.get("type") in _ADDRESSES:
                if child.parent is element:
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
