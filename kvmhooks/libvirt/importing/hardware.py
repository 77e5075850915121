"""The rest of a VM: what KVM tells the guest, its clock, devices beside disks and networks."""

from __future__ import annotations

from typing import Final

from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.reading import Reading
from kvmhooks.machine.domain_reading import Tables, number
from kvmhooks.machine.virtio_serial import AGENT
from kvmhooks.spec.device import device_class
from kvmhooks.spec.present import DEVICES

_SWITCHES: Final = {
    "features/kvm/hidden": "hidden",
    "features/kvm/hint-dedicated": "hint_dedicated",
    "features/kvm/poll-control": "poll_control",
    "features/kvm/pv-ipi": "pv_ipi",
    "features/pvspinlock": "pv_spinlocks",
}
_ON_OFF: Final = {"on": True, "off": False}
_IRQCHIPS: Final = {"kvm": "on", "qemu": "split"}
_CACHES: Final = {"passthrough": "host", "emulate": "emulated"}


def interface(reading: Reading) -> Tables:
    """Return keys of ``[cpu]``: what KVM offers to the guest, its caches, what can be migrated."""
    root = reading.root
    table: Tables = {}
    if root.find("features/kvm") is not None:
        reading.find("features/kvm")
    for path, key in _SWITCHES.items():
        element = root.find(path)
        if element is not None and element.get("state") in _ON_OFF:
            reading.read(element, "state")
            table[key] = _ON_OFF[element.get("state", "")]
    apic = root.find("features/apic")
    if apic is not None and apic.get("eoi") in _ON_OFF:
        reading.read(apic, "eoi")
        table["pv_eoi"] = _ON_OFF[apic.get("eoi", "")]
    cpu = root.find("cpu")
    if cpu is not None and cpu.get("migratable") in _ON_OFF:
        reading.read(cpu, "migratable")
        table["migratable"] = _ON_OFF[cpu.get("migratable", "")]
    cache = root.find("cpu/cache")
    if cache is not None and cache.get("mode") in _CACHES:
        reading.read(cache, "mode")
        reading.expect(cache, {"level": "3"})
        table["caches"] = _CACHES[cache.get("mode", "")]
    hyperv = root.find("features/hyperv")
    if hyperv is not None:
        reading.decide(hyperv, "features/hyperv", "the complete set that the target has")
        table["hyperv"] = "full"
    return {"cpu": table} if table else {}


def machine(reading: Reading) -> Tables:
    """Return a key of ``[machine]``: where interrupt controllers are."""
    element = reading.root.find("features/ioapic")
    if element is None or element.get("driver") not in _IRQCHIPS:
        return {}
    reading.read(element, "driver")
    return {"machine": {"irqchip": _IRQCHIPS[element.get("driver", "")]}}


def backing(reading: Reading) -> Tables:
    """Return keys of ``[memory]``: what it is made of and what is done to it."""
    root = reading.root
    table: Tables = {}
    for tag, key, value in (("locked", "locked", True), ("nosharepages", "merge", False)):
        if reading.find(f"memoryBacking/{tag}") is not None:
            table[key] = value
    access = root.find("memoryBacking/access")
    if access is not None and access.get("mode") == "shared":
        reading.read(access, "mode")
        table["share"] = True
        for cell in root.all("cpu/numa/cell"):
            reading.expect(cell, {"memAccess": "shared"})
    return {"memory": table} if table else {}


def clock(reading: Reading) -> Tables:
    """Return ``[clock]``: what it shows and what tells the time."""
    root = reading.root
    element = root.find("clock")
    if element is None:
        return {}
    table: Tables = {}
    if element.get("offset") in {"utc", "localtime"}:
        reading.read(element, "offset")
        table["offset"] = element.get("offset")
    timers = {timer.get("name"): timer for timer in element.all("timer")}
    for name, present, key in (("hpet", "yes", "hpet"), ("kvmclock", "yes", "kvmclock")):
        timer = timers.get(name)
        if timer is not None and timer.get("present") in {"yes", "no"}:
            reading.read(timer, "name", "present")
            table[key] = timer.get("present") == present
    if "hpet" not in timers:
        table["hpet"] = True  # libvirt leaves it to QEMU, which has one
    return {"clock": {**table, **_rtc(reading, timers.get("rtc")), **_others(reading, timers)}}


def _rtc(reading: Reading, rtc: Element | None) -> Tables:
    table: Tables = {}
    if rtc is not None:
        reading.read(rtc, "name")
        for attribute, key, known in (
            ("track", "rtc_track", {"guest"}),
            ("tickpolicy", "rtc_ticks", {"catchup", "delay"}),
        ):
            if rtc.get(attribute) in known:
                reading.read(rtc, attribute)
                table[key] = rtc.get(attribute)
    return table


def _others(reading: Reading, timers: dict[str | None, Element]) -> Tables:
    table: Tables = {}
    tsc = timers.get("tsc")
    if tsc is not None and tsc.get("frequency") is not None:
        reading.read(tsc, "name", "frequency")
        table["tsc_frequency"] = number(tsc.get("frequency", ""), f"{tsc.path}@frequency")
    hyperv = timers.get("hypervclock")
    if hyperv is not None:
        reading.decide(hyperv, "clock/timer[hypervclock]", "with Hyper-V's interfaces")
    return table


def devices(reading: Reading) -> Tables:
    """Return a table for each kind of device of which there is one."""
    table: Tables = {}
    table |= _agent(reading)
    for name, registration in DEVICES.items():
        tags = registration.elements or (name,)
        there = (
            each
            for tag in tags
            for each in reading.root.all(f"devices/{tag}")
            if not reading.is_read(each)
        )
        if any(registration.tells(each.get("type"), each.get("model")) for each in there):
            table |= device_class(name).read(reading)
    return table


def _agent(reading: Reading) -> Tables:
    """Return QEMU's guest agent, which has a socket of libvirt's."""
    has_agent = False
    for element in reading.root.all("devices/channel"):
        target, source = element.find("target"), element.find("source")
        path = None if source is None else source.get("path")
        if element.get("type") != "unix" or target is None or target.get("type") != "virtio":
            continue
        if target.get("name") == AGENT and (path is None or "/qemu/" in path):
            reading.read(element, "type")
            reading.read(target, "type", "name", "state")
            if source is not None:
                reading.read(source, "mode", "path")
            has_agent = True
    return {"guest": {"agent": True}} if has_agent else {}
