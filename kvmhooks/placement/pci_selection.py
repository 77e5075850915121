"""The device of the host for each ``[[pci]]``, with its address, whatever it was named by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.host.bus.devices import PciDevice
from kvmhooks.host.model import Host
from kvmhooks.inventory.usage import Holding
from kvmhooks.machine.sriov import choose_function
from kvmhooks.spec.model import Pci, VmSpec
from kvmhooks.values import PciAddress

_BRIDGE: Final = "0x06"
"""The class of bridges: of a group they stay with the host (Documentation/driver-api/vfio.rst)."""


def choose_devices(spec: VmSpec, host: Host, holdings: Sequence[Holding]) -> VmSpec:
    """Return the spec with the address of every device that it names otherwise.

    Of several that are alike the first is meant that nobody else has, so the same spec may mean
    another one beside another VM. Raises ``PlanError`` where there is none.
    """
    if all(device.address is not None for device in spec.pci):
        return spec
    there = [device for device in host.pci or () if not (device.class_ or "").startswith(_BRIDGE)]
    taken = {address for holding in holdings for address in holding.pci}
    taken |= {address for _, address in spec.functions()}
    chosen: list[Pci] = []
    for index, device in enumerate(spec.pci):
        if device.address is None and device.sriov is not None:
            settled = choose_function(f"pci[{index}]", device, host, taken)
            taken.add(settled.chosen)
            chosen.append(settled)
            continue
        found = [device.chosen] if device.address else _meant(f"pci[{index}]", device, there, taken)
        taken.update(found)
        chosen += [evolve(device, address=address) for address in found]
    return evolve(spec, pci=tuple(chosen))


def is_meant(device: Pci, present: PciDevice) -> bool:
    """Return whether a table may mean this device of the host, as far as it says which."""
    if device.id is not None:
        return _id_of(present) == device.id
    return (
        present.address == device.address
        or device.net in present.net
        or device.block in present.block
        or (device.iommu_group is not None and present.iommu_group == device.iommu_group)
    )


def _meant(
    at: str, device: Pci, there: Sequence[PciDevice], taken: set[PciAddress]
) -> list[PciAddress]:
    """Return the address of what is meant, or those of a group."""
    if device.net is not None:
        return [_named(f"{at}.net", device.net, ((present, present.net) for present in there))]
    if device.block is not None:
        return [
            _named(f"{at}.block", device.block, ((present, present.block) for present in there))
        ]
    if device.id is not None:
        return [_alike(at, device, there, taken)]
    group = [present.address for present in there if present.iommu_group == device.iommu_group]
    if not group:
        known = sorted(
            {present.iommu_group for present in there if present.iommu_group is not None}
        )
        expected = f"a group with a device: {_listed(known)}"
        raise PlanError(f"{at}.iommu_group", str(device.iommu_group), expected)
    return group


def _named(at: str, name: str, devices: Iterable[tuple[PciDevice, tuple[str, ...]]]) -> PciAddress:
    known: dict[str, PciAddress] = {}
    for device, names in devices:
        known |= dict.fromkeys(names, device.address)
    if name not in known:
        raise PlanError(at, f'"{name}"', f"a PCI device of this host: {_listed(sorted(known))}")
    return known[name]


def _alike(at: str, device: Pci, there: Sequence[PciDevice], taken: set[PciAddress]) -> PciAddress:
    alike = [present.address for present in there if _id_of(present) == device.id]
    if device.index is not None and device.index < len(alike):
        return alike[device.index]
    if device.index is not None:
        found = f"{device.index}, and {len(alike)} of {device.id}"
        raise PlanError(f"{at}.index", found, "one of them, counted from 0 by address")
    free = [address for address in alike if address not in taken]
    if free:
        return free[0]
    if alike:
        found = f'"{device.id}", of which other VMs or tables have all {len(alike)}'
        raise PlanError(f"{at}.id", found, "one that is free")
    known = sorted(set(_ids(there)))
    raise PlanError(f"{at}.id", f'"{device.id}"', f"a device of this host: {_listed(known)}")


def _ids(there: Iterable[PciDevice]) -> Iterator[str]:
    return (found for present in there if (found := _id_of(present)))


def _id_of(device: PciDevice) -> str:
    if device.vendor is None or device.device is None:
        return ""
    return f"{device.vendor.removeprefix('0x')}:{device.device.removeprefix('0x')}"


def _listed(known: Sequence[object]) -> str:
    return ", ".join(map(str, known)) or "it has none"
