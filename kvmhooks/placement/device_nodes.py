"""The nodes of the devices that a VM is to have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from kvmhooks.devices.resets import reset_of, sentences_about
from kvmhooks.errors import PlanError
from kvmhooks.host.bus.devices import PciDevice
from kvmhooks.host.model import Host
from kvmhooks.inventory.usage import Holding
from kvmhooks.placement.model import Cell, PciPlace
from kvmhooks.placement.search.capacity import Capacity
from kvmhooks.placement.search.search import NodeAffinity
from kvmhooks.spec.model import VmSpec

APERTURE: Final = 32 << 30
"""OVMF's size for 64-bit BARs unless it knows better (OvmfPkg/PlatformPei, since 2016)."""


def check_devices(spec: VmSpec, host: Host, holdings: Sequence[Holding]) -> None:
    """See that each device is there, and nobody else's. Raises ``PlanError``."""
    there = _devices(host)
    owners = {address: holding.name for holding in holdings for address in holding.pci}
    _check_mdevs(spec, holdings)
    for at, address, first in spec.repeats():  # also by its name, which was no address before
        raise PlanError(at, str(address), f"each device once: {first} is the same")
    for at, address in spec.functions():
        if address in owners:
            found = f"{address}, which {owners[address]} has"
            raise PlanError(at, found, "a device that is free")
    for index, device in enumerate(spec.pci):
        if host.pci is not None and device.chosen not in there:
            at = f"pci[{index}].address"
            raise PlanError(at, str(device.chosen), "a PCI device of the host")
        is_lost = _node(there, index, spec) is None and len(host.nodes or ()) > 1
        if device.locality == "required" and is_lost:
            raise PlanError(
                f"pci[{index}].locality",
                f'"required" for {device.chosen}, whose node is not known',
                '"preferred" or "ignore"',
            )


def _check_mdevs(spec: VmSpec, holdings: Sequence[Holding]) -> None:
    """See that no other VM has a mediated device. Raises ``PlanError``."""
    owners = {identity: holding.name for holding in holdings for identity in holding.mdevs}
    for index, mdev in enumerate(spec.mdev):
        identity = str(mdev.chosen)
        if identity in owners:
            found = f"{identity}, which {owners[identity]} has"
            raise PlanError(f"mdev[{index}].uuid", found, "a mediated device that is free")


def affinity_of(spec: VmSpec, capacity: Capacity) -> NodeAffinity:
    """Return the nodes that the devices of a VM draw it to."""
    there = _devices(capacity.host)
    index_of = {node.node: node.index for node in capacity.numa_nodes}
    preferred: Counter[int] = Counter()
    required = set()
    for index, device in enumerate(spec.pci):
        node = _node(there, index, spec)
        if node not in index_of or device.locality == "ignore" or node is None:
            continue
        if device.locality == "required":
            required.add(index_of[node])
        else:
            preferred[index_of[node]] += 1
    for mediated in spec.mdev:
        parent = None if mediated.parent is None else there.get(mediated.parent)
        if parent is not None and parent.node is not None and parent.node in index_of:
            preferred[index_of[parent.node]] += 1
    return NodeAffinity(preferred=preferred, required=frozenset(required))


def place_devices(spec: VmSpec, host: Host, cells: Sequence[Cell]) -> tuple[PciPlace, ...]:
    """Return each device's node, and the first guest cell on it."""
    there = _devices(host)
    cell_on = {cell.node: cell.id for cell in reversed(cells)}
    return tuple(
        PciPlace(
            device.chosen,
            node := _node(there, index, spec),
            None if node is None else cell_on.get(node),
        )
        for index, device in enumerate(spec.pci)
    )


def device_warnings(spec: VmSpec, host: Host) -> Iterator[str]:
    """Tell of devices that are not reset for the VM, or not without others, or are very large."""
    given = [device.chosen for device in spec.pci]
    there = _devices(host) if given else {}
    present: list[PciDevice] = []
    for index, address in enumerate(given):
        device = there.get(address)
        if device is None:
            continue
        present.append(device)
        reset = reset_of(device, host.pci or ())
        if reset.kind == "none" or not set(reset.shared_with) <= {*given}:
            for sentence in sentences_about(reset, given):
                yield f"pci[{index}]: {address} {sentence}"
    yield from _huge_bars(spec, present)


def _huge_bars(spec: VmSpec, given: Sequence[PciDevice]) -> Iterator[str]:
    """Tell of BARs for which an older OVMF has no room: it takes 32 GiB, and no switch is set."""
    total = sum(sum(device.bars) for device in given)
    if spec.boot.firmware != "uefi" or total < APERTURE:
        return
    largest = max(given, key=lambda device: sum(device.bars))
    yield (
        f"pci: memory BARs of {total >> 30} GiB, {largest.address} the most of them: an OVMF that "
        "does not fit its window for them to the CPU maps 32 GiB (its opt/ovmf/X-PciMmio64Mb is "
        "not set), and the guest would lack the device: take a newer OVMF (boot.code)"
    )


def _devices(host: Host) -> dict[object, PciDevice]:
    return {device.address: device for device in host.pci or ()}


def _node(there: dict[object, PciDevice], index: int, spec: VmSpec) -> int | None:
    device = there.get(spec.pci[index].chosen)
    return None if device is None else device.node
