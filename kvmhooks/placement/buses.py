"""Where each device of the guest is plugged in.

A PCI Express device has a root port of its own, as on real machines; what is part of the chipset or
is no Express device stands on the root bus. Both renderings take their addresses from here, so that
the guest sees the same machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from attrs import field, frozen

from kvmhooks.errors import PlanError
from kvmhooks.placement.storage import DiskPath, ScsiController
from kvmhooks.spec.model import VmSpec

FIRST_SLOT: Final = 1
"""Slot 0 of q35's root bus is the host bridge; 1 to 0x1e are free (hw/i386/pc_q35.c)."""

FUNCTIONS: Final = 8

ON_ROOT: Final = {"video": 0x01, "sound": 0x1B, "watchdog": 0x1C, "panic": 0x1D, "iommu": 0x1E}
"""The slots of what stands on the root bus: libvirt's own places for video and sound."""


CHIPSET_SLOT: Final = 0x1F
"""The slot of the ICH9's own functions on q35's root bus (include/hw/southbridge/ich9.h)."""

EXPANDER_SLOT: Final = 0x1A
"""The highest slot of a host bridge that stands for a guest cell; further ones are below it."""

BUSES: Final = 256
"""The numbers of PCI buses."""


@frozen
class Port:
    """One ``pcie-root-port`` with the device behind it."""

    device: str
    """The id of the device, such as ``disk0``."""
    index: int
    """The number of its bus, from 1: QEMU's id is ``pci.1``, libvirt's bus ``0x01``."""
    position: int
    """Which of the ports on its parent it is, from 0."""
    first_slot: int = FIRST_SLOT
    parent: int = 0
    """The number of the bus that it stands on: 0 is the root bus."""

    @property
    def bus(self) -> str:
        """The id of the bus."""
        return bus_id(self.index)

    @property
    def slot(self) -> int:
        """The slot on its parent; eight ports share one."""
        return self.first_slot + self.position // FUNCTIONS

    @property
    def function(self) -> int:
        """The function in that slot."""
        return self.position % FUNCTIONS

    @property
    def announces_others(self) -> bool:
        """Whether it is function 0, which says that its slot has others."""
        return self.function == 0

    @property
    def number(self) -> int:
        """The port's own number: slot and function, as a real one would have."""
        return self.slot << 3 | self.function


@frozen
class Expander:
    """A host bridge of its own (``pxb-pcie``): devices behind it are near to one guest cell."""

    index: int
    """The number of its bus, counted with those of the ports."""
    cell: int
    slot: int
    """Its slot on the root bus."""
    first_bus: int
    """The guest's number of its bus; those behind its ports follow."""


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
    expanders: tuple[Expander, ...]
    places: Mapping[str, Place] = field(eq=False)


def bus_id(index: int) -> str:
    """QEMU's id of a bus."""
    return f"pci.{index}" if index else "pcie.0"


def lay_out(
    spec: VmSpec,
    paths: tuple[DiskPath, ...],
    controllers: tuple[ScsiController, ...],
    cells: tuple[int | None, ...] = (),
) -> Layout:
    """Plug in every device of a spec; ``cells`` names the guest cell that each ``pci`` is near to.

    ``microvm`` has no PCI: its devices have no places. Raises ``PlanError`` for more devices than
    there are places for.
    """
    on_root = [name for name, is_there in _on_root(spec) if is_there]
    places = {name: Place(0, ON_ROOT[name]) for name in on_root}
    groups: dict[str, list[str]] = {}
    for device in _express(spec, paths, controllers):
        groups.setdefault(_group(spec, device), []).append(device)
    near = {f"pci{at}": cell for at, cell in enumerate(cells) if cell is not None}
    first = FIRST_SLOT + ("video" in on_root)
    ports: list[Port] = []
    for members in groups.values():
        if near.get(members[0]) is None:
            ports.append(Port(members[0], len(ports) + 1, len(ports), first))
    expanders: list[Expander] = []
    free = BUSES
    for cell in sorted(set(near.values())):
        behind = [members[0] for members in groups.values() if near.get(members[0]) == cell]
        if not behind:
            continue  # its devices are functions of one that is elsewhere
        index = len(ports) + len(expanders) + 1
        free -= len(behind) + 1
        slot = EXPANDER_SLOT - len(expanders)
        expanders.append(Expander(index, cell, slot, free))
        ports += [Port(device, index + 1 + at, at, 0, index) for at, device in enumerate(behind)]
    if spec.machine.type != "microvm":
        _check_room(ports, [place.slot for place in places.values()], expanders)
    by_first = {members[0]: members for members in groups.values()}
    for port in ports:
        members = by_first[port.device]
        for function, device in enumerate(members):
            shares = function == 0 and len(members) > 1
            places[device] = Place(port.index, 0, function, shares)
    return Layout(tuple(ports), tuple(expanders), places)


def _check_room(
    ports: Sequence[Port], on_root: Collection[int], expanders: Sequence[Expander]
) -> None:
    """See that there are slots for all ports, and numbers for all buses.

    The ports on the root bus end below the slots of what else stands there. Raises ``PlanError``.
    """
    own = [port for port in ports if port.parent == 0]
    taken = (CHIPSET_SLOT, *on_root, *(each.slot for each in expanders))
    first = own[0].first_slot if own else FIRST_SLOT
    most = (min(slot for slot in taken if slot >= first) - first) * FUNCTIONS
    if len(own) > most:
        found = f"{len(own)} devices on PCI Express"
        raise PlanError("machine.type", found, f"at most {most}, for which the root bus has ports")
    buses = 1 + len(ports) + len(expanders)
    if buses > BUSES:
        raise PlanError("machine.type", f"{buses} PCI buses", f"at most {BUSES}")


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
