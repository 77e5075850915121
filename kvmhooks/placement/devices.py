"""The nodes of the devices that a VM is to have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvmhooks.errors import PlanError
from kvmhooks.host.devices import PciDevice
from kvmhooks.host.model import Host
from kvmhooks.placement.ground import Ground
from kvmhooks.placement.holding import Holding
from kvmhooks.placement.model import Cell, PciPlace
from kvmhooks.placement.search import Near
from kvmhooks.spec.model import VmSpec


def check_devices(spec: VmSpec, host: Host, holdings: Sequence[Holding]) -> None:
    """See that each device is there, and nobody else's. Raises ``PlanError``."""
    there = _devices(host)
    owners = {address: holding.name for holding in holdings for address in holding.pci}
    for index, device in enumerate(spec.pci):
        at = f"pci[{index}].address"
        if host.pci is not None and device.chosen not in there:
            raise PlanError(at, str(device.chosen), "a PCI device of the host")
        if device.chosen in owners:
            name = owners[device.chosen]
            raise PlanError(at, f"{device.chosen}, which {name} has", "a device that is free")
        is_lost = _node(there, index, spec) is None and len(host.nodes or ()) > 1
        if device.locality == "required" and is_lost:
            raise PlanError(
                f"pci[{index}].locality",
                f'"required" for {device.chosen}, whose node is not known',
                '"preferred" or "ignore"',
            )


def near(spec: VmSpec, ground: Ground) -> Near:
    """Which nodes the devices of a VM draw it to."""
    there = _devices(ground.host)
    index_of = {site.node: site.index for site in ground.sites}
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
    return Near(preferred=preferred, required=frozenset(required))


def place_devices(spec: VmSpec, host: Host, cells: Sequence[Cell]) -> tuple[PciPlace, ...]:
    """Each device's node, and the first guest cell on it."""
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


def _devices(host: Host) -> dict[object, PciDevice]:
    return {device.address: device for device in host.pci or ()}


def _node(there: dict[object, PciDevice], index: int, spec: VmSpec) -> int | None:
    device = there.get(spec.pci[index].chosen)
    return None if device is None else device.node
