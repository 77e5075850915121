"""Mediated devices that are yet to be made: each with its UUID and the device it is made of."""

from __future__ import annotations

import uuid
from collections import Counter

from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.spec.devices import Mdev
from kvmhooks.spec.forms import Uuid
from kvmhooks.spec.model import VmSpec
from kvmhooks.values import PciAddress


def choose_parents(spec: VmSpec, host: Host, identity: str) -> VmSpec:
    """Return the spec with a UUID for each mediated device and a parent for each that has a type.

    UUIDs are derived from the VM's, so they are the same each time. Of several parents the one is
    meant that can make the most more. Raises ``PlanError`` where there is none.
    """
    if all(mdev.type is None for mdev in spec.mdev):
        return spec
    made: Counter[tuple[PciAddress, str]] = Counter()
    chosen: list[Mdev] = []
    for index, mdev in enumerate(spec.mdev):
        if mdev.type is None:
            chosen.append(mdev)
            continue
        parent = _parent(f"mdev[{index}]", mdev, host, made)
        made[parent, mdev.type] += 1
        derived = Uuid(str(uuid.uuid5(uuid.UUID(identity), f"mdev{index}")))
        chosen.append(evolve(mdev, uuid=mdev.uuid or derived, parent=parent))
    return evolve(spec, mdev=tuple(chosen))


def mdevs_of(spec: VmSpec) -> list[tuple[str, str, str]]:
    """Return (UUID, parent, type) of each mediated device that is to be made."""
    made = [mdev for mdev in spec.mdev if mdev.type is not None]
    return [(str(mdev.chosen), str(mdev.parent), str(mdev.type)) for mdev in made]


def _parent(at: str, mdev: Mdev, host: Host, made: Counter[tuple[PciAddress, str]]) -> PciAddress:
    assert mdev.type is not None
    kinds = {
        (device.address, kind.name): kind.available or 0
        for device in host.pci or ()
        for kind in device.mdev_types
    }
    able = {
        address: free - made[address, name]
        for (address, name), free in kinds.items()
        if name == mdev.type and mdev.parent in {None, address}
    }
    if not able:
        known = sorted({name for address, name in kinds if mdev.parent in {None, address}})
        where = "this host" if mdev.parent is None else str(mdev.parent)
        listed = ", ".join(known) or "it has none"
        raise PlanError(f"{at}.type", f'"{mdev.type}"', f"a type that {where} can make: {listed}")
    return max(sorted(able), key=lambda address: able[address])
