"""What else a VM has: what KVM tells the guest, its clock, devices beside disks and networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kvmhooks.domain.import_cpu import number
from kvmhooks.domain.reading import Reading, fits
from kvmhooks.domain.source import Element
from kvmhooks.spec.forms import IpAddress, Tag
from kvmhooks.values import ByteSize

Tables = dict[str, Any]

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
    """Keys of ``[cpu]``: what KVM offers to the guest, its caches, what can be migrated."""
    root = reading.root
    said: Tables = {}
    if root.find("features/kvm") is not None:
        reading.find("features/kvm")
    for path, key in _SWITCHES.items():
        element = root.find(path)
        if element is not None and element.get("state") in _ON_OFF:
            reading.read(element, "state")
            said[key] = _ON_OFF[element.get("state", "")]
    apic = root.find("features/apic")
    if apic is not None and apic.get("eoi") in _ON_OFF:
        reading.read(apic, "eoi")
        said["pv_eoi"] = _ON_OFF[apic.get("eoi", "")]
    cpu = root.find("cpu")
    if cpu is not None and cpu.get("migratable") in _ON_OFF:
        reading.read(cpu, "migratable")
        said["migratable"] = _ON_OFF[cpu.get("migratable", "")]
    cache = root.find("cpu/cache")
    if cache is not None and cache.get("mode") in _CACHES:
        reading.read(cache, "mode")
        reading.expect(cache, {"level": "3"})
        said["caches"] = _CACHES[cache.get("mode", "")]
    hyperv = root.find("features/hyperv")
    if hyperv is not None:
        reading.decide(hyperv, "features/hyperv", "the complete set that the target has")
        said["hyperv"] = "full"
    return {"cpu": said} if said else {}


def machine(reading: Reading) -> Tables:
    """A key of ``[machine]``: where interrupt controllers are."""
    element = reading.root.find("features/ioapic")
    if element is None or element.get("driver") not in _IRQCHIPS:
        return {}
    reading.read(element, "driver")
    return {"machine": {"irqchip": _IRQCHIPS[element.get("driver", "")]}}


def backing(reading: Reading) -> Tables:
    """Keys of ``[memory]``: what it is made of and what is done to it."""
    root = reading.root
    said: Tables = {}
    for tag, key, value in (("locked", "locked", True), ("nosharepages", "merge", False)):
        if reading.find(f"memoryBacking/{tag}") is not None:
            said[key] = value
    access = root.find("memoryBacking/access")
    if access is not None and access.get("mode") == "shared":
        reading.read(access, "mode")
        said["share"] = True
        for cell in root.all("cpu/numa/cell"):
            reading.expect(cell, {"memAccess": "shared"})
    return {"memory": said} if said else {}


def clock(reading: Reading) -> Tables:
    """``[clock]``: what it shows and what tells the time."""
    root = reading.root
    element = root.find("clock")
    if element is None:
        return {}
    said: Tables = {}
    if element.get("offset") in {"utc", "localtime"}:
        reading.read(element, "offset")
        said["offset"] = element.get("offset")
    timers = {timer.get("name"): timer for timer in element.all("timer")}
    for name, present, key in (("hpet", "yes", "hpet"), ("kvmclock", "yes", "kvmclock")):
        timer = timers.get(name)
        if timer is not None and timer.get("present") in {"yes", "no"}:
            reading.read(timer, "name", "present")
            said[key] = timer.get("present") == present
    if "hpet" not in timers:
        said["hpet"] = True  # libvirt leaves it to QEMU, which has one
    return {"clock": {**said, **_rtc(reading, timers.get("rtc")), **_others(reading, timers)}}


def _rtc(reading: Reading, rtc: Element | None) -> Tables:
    said: Tables = {}
    if rtc is not None:
        reading.read(rtc, "name")
        for attribute, key, known in (
            ("track", "rtc_track", {"guest"}),
            ("tickpolicy", "rtc_ticks", {"catchup", "delay"}),
        ):
            if rtc.get(attribute) in known:
                reading.read(rtc, attribute)
                said[key] = rtc.get(attribute)
    return said


def _others(reading: Reading, timers: dict[str | None, Element]) -> Tables:
    said: Tables = {}
    tsc = timers.get("tsc")
    if tsc is not None and tsc.get("frequency") is not None:
        reading.read(tsc, "name", "frequency")
        said["tsc_frequency"] = number(tsc.get("frequency", ""), f"{tsc.path}@frequency")
    hyperv = timers.get("hypervclock")
    if hyperv is not None:
        reading.decide(hyperv, "clock/timer[hypervclock]", "with Hyper-V's interfaces")
    return said


def devices(reading: Reading) -> Tables:
    """A table for each kind of device of which there is one."""
    said: Tables = {}
    for concern in _DEVICES:
        said |= concern(reading)
    return said


def _first(
    reading: Reading, tag: str, name: str, known: dict[str, str]
) -> tuple[Element, str] | None:
    """The first device of a kind, if it is one that vm.toml has a word for."""
    element = reading.root.find(f"devices/{tag}")
    word = None if element is None else known.get(element.get(name, ""))
    if element is None or word is None:
        return None
    reading.read(element, name)
    return element, word


def _graphics(reading: Reading) -> Tables:
    found = _first(reading, "graphics", "type", {"vnc": "vnc", "spice": "spice"})
    if found is None:
        return {}
    element, kind = found
    said: Tables = {"type": kind}
    port = element.get("port", "-1")
    if port.isdigit() and element.get("autoport") == "no":
        reading.read(element, "port", "autoport")
        said["port"] = number(port, f"{element.path}@port")
    else:
        for name in ("port", "autoport"):
            reading.decide_attribute(element, name, "5900, unless vm.toml says another")
    for listen in element.all("listen"):
        address = listen.get("address")
        if listen.get("type") == "address" and (address is None or fits(IpAddress, address)):
            reading.read(listen, "type", "address")
            said["listen"] = address or "127.0.0.1"
    if element.get("listen") in {said.get("listen"), "127.0.0.1"}:
        reading.read(element, "listen")
    return {"graphics": {**said, **_video(reading)}}


def _video(reading: Reading) -> Tables:
    element = reading.root.find("devices/video")
    model = None if element is None else element.find("model")
    if element is None or model is None:
        return {}
    kinds = {"virtio", "vga", "qxl", "bochs", "ramfb", "none"}
    kind = model.get("type", "")
    if kind not in kinds:
        return {}
    reading.read(element)
    reading.read(model, "type")
    reading.expect(model, {"primary": "yes"})
    for name in ("ram", "vram", "vgamem", "vram64"):
        reading.decide_attribute(model, name, "as much as the card has by itself")
    said: Tables = {"video": kind}
    heads = model.get("heads", "1")
    reading.read(model, "heads")
    if heads != "1" and kind in {"virtio", "qxl"}:
        said["heads"] = number(heads, f"{model.path}@heads")
    return said


def _rng(reading: Reading) -> Tables:
    found = _first(reading, "rng", "model", {"virtio": "virtio"})
    backend = None if found is None else found[0].find("backend")
    if found is None or backend is None:
        return {}
    sources = {"builtin": "builtin", "random": "urandom"}
    source = sources.get(backend.get("model", ""))
    if source is None or backend.text.strip() not in {"", "/dev/urandom", "/dev/random"}:
        return {}
    reading.read(backend, "model")
    said: Tables = {"source": source}
    rate = found[0].find("rate")
    if rate is not None and rate.get("bytes") is not None:
        size = number(rate.get("bytes", ""), f"{rate.path}@bytes")
        if size % 1024 == 0 and size:
            reading.read(rate, "bytes", "period")
            said["rate"] = str(ByteSize(size))
            said["period"] = number(rate.get("period", "1000"), f"{rate.path}@period")
    return {"rng": said}


def _tpm(reading: Reading) -> Tables:
    found = _first(reading, "tpm", "model", {"tpm-crb": "crb", "tpm-tis": "tis"})
    backend = None if found is None else found[0].find("backend")
    if found is None or backend is None or backend.get("type") != "emulator":
        return {}
    reading.read(backend, "type")
    reading.expect(backend, {"version": "2.0"})
    return {"tpm": {"model": found[1]}}


def _watchdog(reading: Reading) -> Tables:
    found = _first(reading, "watchdog", "model", {"i6300esb": "i6300esb", "itco": "itco"})
    if found is None:
        return {}
    said = {"model": found[1]}
    action = found[0].get("action", "reset")
    if action in {"reset", "poweroff", "pause", "none", "inject-nmi"}:
        reading.read(found[0], "action")
        said["action"] = action
    return {"watchdog": said}


def _panic(reading: Reading) -> Tables:
    found = _first(reading, "panic", "model", {"isa": "isa", "pvpanic": "pci"})
    return {} if found is None else {"panic": {"model": found[1]}}


def _balloon(reading: Reading) -> Tables:
    found = _first(reading, "memballoon", "model", {"virtio": "virtio"})
    if found is None:
        return {}
    said: Tables = {"enabled": True}
    for name, key in (
        ("autodeflate", "deflate_on_oom"),
        ("freePageReporting", "free_page_reporting"),
    ):
        if found[0].get(name) in _ON_OFF:
            reading.read(found[0], name)
            said[key] = _ON_OFF[found[0].get(name, "")]
    return {"balloon": said}


def _iommu(reading: Reading) -> Tables:
    found = _first(reading, "iommu", "model", {"intel": "intel", "virtio": "virtio"})
    if found is None:
        return {}
    driver = found[0].find("driver")
    if driver is not None:
        reading.expect(driver, {"intremap": "on"})
        reading.expect(driver, {"caching_mode": "on"})
        reading.decide_attribute(driver, "eim", "with more than 255 vCPUs")
    return {"iommu": {"model": found[1]}}


def _vsock(reading: Reading) -> Tables:
    found = _first(reading, "vsock", "model", {"virtio": "virtio"})
    if found is None:
        return {}
    said: Tables = {"enabled": True}
    cid = found[0].find("cid")
    if cid is not None:
        reading.read(cid, "auto")
        if cid.get("auto", "no") == "no" and cid.get("address") is not None:
            reading.read(cid, "address")
            said["cid"] = number(cid.get("address", ""), f"{cid.path}@address")
    return {"vsock": said}


def _filesystems(reading: Reading) -> Tables:
    said = []
    for element in reading.root.all("devices/filesystem"):
        driver, source = element.find("driver"), element.find("source")
        target = element.find("target")
        is_virtiofs = driver is not None and driver.get("type") == "virtiofs"
        tag = None if target is None else target.get("dir")
        if not is_virtiofs or driver is None or source is None or not fits(Tag, tag):
            continue
        if source.get("dir") is None or target is None:
            continue
        reading.read(element, "type", "accessmode")
        reading.read(driver, "type", "queue")
        reading.read(source, "dir")
        reading.read(target, "dir")
        table: Tables = {"path": source.get("dir"), "tag": tag}
        if driver.get("queue") is not None:
            table["queue_size"] = number(driver.get("queue", ""), f"{driver.path}@queue")
        readonly = element.find("readonly")
        if readonly is not None:
            reading.read(readonly)
            table["readonly"] = True
        said.append(table)
    return {"filesystem": said} if said else {}


def _agent(reading: Reading) -> Tables:
    """QEMU's guest agent; other channels need a socket of their own."""
    guest: Tables = {}
    said = []
    for element in reading.root.all("devices/channel"):
        target, source = element.find("target"), element.find("source")
        name = None if target is None else target.get("name")
        path = None if source is None else source.get("path")
        if element.get("type") != "unix" or target is None or target.get("type") != "virtio":
            continue
        if name == "org.qemu.guest_agent.0" and (path is None or "/qemu/" in path):
            guest["agent"] = True
        elif fits(Tag, name) and path is not None and source is not None:
            said.append({"name": name, "socket": path})
        else:
            continue
        reading.read(element, "type")
        reading.read(target, "type", "name", "state")
        if source is not None:
            reading.read(source, "mode", "path")
    return {**({"guest": guest} if guest else {}), **({"channel": said} if said else {})}


def _inputs(reading: Reading) -> Tables:
    said = []
    for element in reading.root.all("devices/input"):
        kind, bus = element.get("type"), element.get("bus", "usb")
        if kind in {"tablet", "mouse", "keyboard"} and bus in {"usb", "virtio"}:
            reading.read(element, "type", "bus")
            said.append({"type": kind, "bus": bus})
        elif kind in {"mouse", "keyboard"} and bus == "ps2":
            reading.decide(element, "devices/input[ps2]", "every PC has them")
    return {"input": said} if said else {}


def _usb(reading: Reading) -> Tables:
    for element in reading.root.all("devices/controller"):
        if element.get("type") == "usb" and element.get("model") == "qemu-xhci":
            return {"usb": {"controller": "xhci"}}
    return {}


def _sound(reading: Reading) -> Tables:
    """The card, and where it is heard; libvirt writes an ``<audio>`` without any card, too."""
    found = _first(reading, "sound", "model", {"ich9": "ich9", "virtio": "virtio"})
    named = None if found is None else found[0].find("audio")
    heard = {audio.get("id"): audio for audio in reading.root.all("devices/audio")}
    said: Tables = {} if found is None else {"model": found[1]}
    for number_, audio in heard.items():
        kind = audio.get("type", "")
        is_its = found is not None and (named is None or named.get("id") == number_)
        if is_its and kind in {"none", "spice", "pipewire", "pulseaudio", "alsa"}:
            reading.read(audio, "id", "type")
            said["backend"] = kind
        elif found is None and kind in {"none", "spice"}:
            reading.decide(audio, "devices/audio", "there is no sound card")
    if named is not None:
        reading.read(named, "id")
    return {"sound": said} if said else {}


_DEVICES: Final[tuple[Callable[[Reading], Tables], ...]] = (
    _graphics, _rng, _tpm, _watchdog, _panic, _balloon, _iommu, _vsock, _filesystems, _agent,
    _inputs, _usb, _sound,
)  # fmt: skip
