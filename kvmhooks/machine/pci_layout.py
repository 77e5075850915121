"""The place of each device of the guest on a bus.

A PCI Express device has a root port of its own, as on real machines; what is part of the chipset or
is no Express device stands on the root bus. Both renderings take their addresses from here, so that
the guest sees the same machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from kvmhooks.errors import PlanError
from kvmhooks.spec.present import devices_of, in_order

if TYPE_CHECKING:
    from kvmhooks.machine.storage import DiskPath, ScsiController
    from kvmhooks.spec.model import VmSpec

FIRST_SLOT: Final = 1
"""Slot 0 of q35's root bus is the host bridge; 1 to 0x1e are free (hw/i386/pc_q35.c)."""

FUNCTIONS: Final = 8

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
    """The number of its port on its parent, from 0."""
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
        """It is function 0, which says that its slot has others."""
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
class GuestPciAddress:
    """The PCI address of one device: bus 0 is the root bus."""

    bus: int
    slot: int = 0
    function: int = 0
    announces_others: bool = False

    @property
    def bus_id(self) -> str:
        """QEMU's id of its bus."""
        return bus_id(self.bus)


@frozen
class Layout:
    """The ports and the places of all devices."""

    ports: tuple[Port, ...]
    expanders: tuple[Expander, ...]
    places: Mapping[str, GuestPciAddress] = field(eq=False)


def bus_id(index: int) -> str:
    """Return QEMU's id of a bus."""
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
    on_root = _on_root(spec)
    places = {name: GuestPciAddress(0, slot) for name, slot in on_root.items()}
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
    last = EXPANDER_SLOT - (EXPANDER_SLOT in on_root.values())
    for cell in sorted(set(near.values())):
        behind = [members[0] for members in groups.values() if near.get(members[0]) == cell]
        if not behind:
            continue  # its devices are functions of one that is elsewhere
        index = len(ports) + len(expanders) + 1
        free -= len(behind) + 1
        slot = last - len(expanders)
        expanders.append(Expander(index, cell, slot, free))
        ports += [Port(device, index + 1 + at, at, 0, index) for at, device in enumerate(behind)]
    if spec.machine.type != "microvm":
        _check_room(ports, [place.slot for place in places.values()], expanders)
    by_first = {members[0]: members for members in groups.values()}
    for port in ports:
        members = by_first[port.device]
        for function, device in enumerate(members):
            shares = function == 0 and len(members) > 1
            places[device] = GuestPciAddress(port.index, 0, function, shares)
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


def _on_root(spec: VmSpec) -> dict[str, int]:
    """Return the slots of the devices that stand on the root bus, from the lowest."""
    slots = {}
    for present in devices_of(spec):
        slot = present.device.slot
        if slot is not None:
            slots[present.id] = slot
    return dict(sorted(slots.items(), key=lambda item: item[1]))


def _express(
    spec: VmSpec, paths: tuple[DiskPath, ...], controllers: tuple[ScsiController, ...]
) -> Iterator[str]:
    """Yield the devices behind root ports, in the guest's order."""
    yield from (f"net{at}" for at in range(len(spec.net)))
    yield from (f"scsi{at}" for at in range(len(controllers)))
    own = {"virtio-blk", "nvme"}
    yield from (f"disk{at}" for at, path in enumerate(paths) if path.bus in own)
    yield from (f"nvme{at}" for at in range(len(spec.nvme)))
    if has_channels(spec):
        yield "virtio-serial0"
    yield from (f"pci{at}" for at in range(len(spec.pci)))
    yield from (f"mdev{at}" for at in range(len(spec.mdev)))
    yield from (present.id for present in in_order(spec) if present.device.is_express)
    yield from (f"virtiomem{at}" for at in range(len(spec.memory.virtio)))


def _group(spec: VmSpec, device: str) -> str:
    """Return the key of a port: passed-through devices of one group are functions of one device."""
    if device.startswith("pci"):
        group = spec.pci[int(device[3:])].group
        if group is not None:
            return f"group {group}"
    return device


def has_channels(spec: VmSpec) -> bool:
    """Return whether there is a virtio-serial controller."""
    return spec.console.type == "virtio" or spec.guest.agent or bool(spec.channel)
