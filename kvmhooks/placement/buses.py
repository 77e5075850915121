"""Where each device of the guest is plugged in.

A PCI Express device has a root port of its own, as on real machines; what is part of the chipset or
is no Express device stands on the root bus. Both renderings take their addresses from here, so that
the guest sees the same machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from attrs import field, frozen

from kvmhooks.placement.storage import DiskPath, ScsiController
from kvmhooks.spec.model import VmSpec

FIRST_SLOT: Final = 1
"""Slot 0 of q35's root bus is the host bridge; 1 to 0x1e are free (hw/i386/pc_q35.c)."""

FUNCTIONS: Final = 8

ON_ROOT: Final = {"video": 0x01, "sound": 0x1B, "watchdog": 0x1C, "panic": 0x1D, "iommu": 0x1E}
"""The slots of what stands on the root bus: libvirt's own places for video and sound."""


@frozen
class Port:
    """One ``pcie-root-port`` with the device behind it."""

    device: str
    """The id of the device, such as ``disk0``."""
    index: int
    """The number of its bus, from 1: QEMU's id is ``pci.1``, libvirt's bus ``0x01``."""
    first_slot: int = FIRST_SLOT

    @property
    def bus(self) -> str:
        """The id of the bus."""
        return f"pci.{self.index}"

    @property
    def slot(self) -> int:
        """The slot on the root bus; eight ports share one."""
        return self.first_slot + (self.index - 1) // FUNCTIONS

    @property
    def function(self) -> int:
        """The function in that slot."""
        return (self.index - 1) % FUNCTIONS

    @property
    def announces_others(self) -> bool:
        """Whether it is function 0, which says that its slot has others."""
        return self.function == 0

    @property
    def number(self) -> int:
        """The port's own number: slot and function, as a real one would have."""
        return self.slot << 3 | self.function


@frozen
class Place:
    """The PCI address of one device: bus 0 is the root bus."""

    bus: int
    slot: int = 0
    function: int = 0
    announces_others: bool = False


@frozen
class Layout:
    """The ports and the places of all devices."""

    ports: tuple[Port, ...]
    places: Mapping[str, Place] = field(eq=False)


def lay_out(
    spec: VmSpec, paths: tuple[DiskPath, ...], controllers: tuple[ScsiController, ...]
) -> Layout:
    """Plug in every device of a spec. ``microvm`` has no PCI: its devices have no places."""
    on_root = [name for name, is_there in _on_root(spec) if is_there]
    places = {name: Place(0, ON_ROOT[name]) for name in on_root}
    first = FIRST_SLOT + ("video" in on_root)
    ports: list[Port] = []
    groups: dict[str, list[str]] = {}
    for device in _express(spec, paths, controllers):
        group = _group(spec, device)
        if group in groups:
            groups[group].append(device)
            leader = places[groups[group][0]]
            places[groups[group][0]] = Place(leader.bus, 0, 0, announces_others=True)
            places[device] = Place(leader.bus, 0, len(groups[group]) - 1)
            continue
        groups[group] = [device]
        ports.append(Port(device, len(ports) + 1, first))
        places[device] = Place(len(ports))
    return Layout(tuple(ports), places)


def _on_root(spec: VmSpec) -> Iterator[tuple[str, bool]]:
    yield "video", video_of(spec) is not None
    yield "sound", spec.sound.model == "ich9"
    yield "watchdog", spec.watchdog.model == "i6300esb"
    yield "panic", spec.panic.model == "pci"
    yield "iommu", spec.iommu.model == "virtio"


def _express(
    spec: VmSpec, paths: tuple[DiskPath, ...], controllers: tuple[ScsiController, ...]
) -> Iterator[str]:
    """The devices behind root ports, in the guest's order."""
    yield from (f"net{at}" for at in range(len(spec.net)))
    yield from (f"scsi{at}" for at in range(len(controllers)))
    own = {"virtio-blk", "nvme"}
    yield from (f"disk{at}" for at, path in enumerate(paths) if path.bus in own)
    yield from (f"nvme{at}" for at in range(len(spec.nvme)))
    if has_channels(spec):
        yield "virtio-serial0"
    yield from (f"pci{at}" for at in range(len(spec.pci)))
    yield from (f"mdev{at}" for at in range(len(spec.mdev)))
    yield from (f"fs{at}" for at in range(len(spec.filesystem)))
    if has_usb(spec):
        yield "usb"
    yield from (
        f"input{at}" for at, each in enumerate(spec.input) if is_virtio(each.type, each.bus)
    )
    if spec.sound.model == "virtio":
        yield "sound"
    there = {"vsock": spec.vsock.enabled, "rng": spec.rng.source != "none"}
    yield from (name for name, is_there in there.items() if is_there)
    if spec.balloon.enabled:
        yield "balloon"
    yield from (f"virtiomem{at}" for at in range(len(spec.memory.virtio)))


def _group(spec: VmSpec, device: str) -> str:
    """What shares a port: passed-through devices of one group are functions of one device."""
    if device.startswith("pci"):
        group = spec.pci[int(device[3:])].group
        if group is not None:
            return f"group {group}"
    return device


def is_virtio(kind: str, bus: str) -> bool:
    """Whether an input device is on PCI: the host's is no device of its own."""
    return bus == "virtio" and kind != "evdev"


def has_channels(spec: VmSpec) -> bool:
    """Whether there is a virtio-serial controller."""
    return spec.console.type == "virtio" or spec.guest.agent or bool(spec.channel)


def has_usb(spec: VmSpec) -> bool:
    """Whether there is a USB controller."""
    if spec.usb.controller == "auto":
        inputs = any(each.bus == "usb" and each.type != "evdev" for each in spec.input)
        return inputs or bool(spec.host_usb)
    return spec.usb.controller == "xhci"


def video_of(spec: VmSpec) -> str | None:
    """The graphics card, if any."""
    if spec.graphics.video == "auto":
        return None if spec.graphics.type == "none" else "virtio"
    return None if spec.graphics.video == "none" else spec.graphics.video
