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
    """The spec with a UUID for each mediated device and a parent for each that has a type.

    UUIDs are derived from the VM's, so they are the same each time. Of several parents the one is
    meant that can make the most more. Raises ``PlanError`` where there is none.
    """
    if all(one.type is None for one in spec.mdev):
        return spec
    made: Counter[tuple[PciAddress, str]] = Counter()
    chosen: list[Mdev] = []
    for index, one in enumerate(spec.mdev):
        if one.type is None:
            chosen.append(one)
            continue
        parent = _parent(f"mdev[{index}]", one, host, made)
        made[parent, one.type] += 1
        derived = Uuid(str(uuid.uuid5(uuid.UUID(identity), f"mdev{index}")))
        chosen.append(evolve(one, uuid=one.uuid or derived, parent=parent))
    return evolve(spec, mdev=tuple(chosen))


def mdevs_of(spec: VmSpec) -> str:
    """What the policy says of mediated devices to make; empty for nothing."""
    made = [one for one in spec.mdev if one.type is not None]
    return ",".join(f"{one.chosen}={one.parent}/{one.type}" for one in made)


def _parent(at: str, one: Mdev, host: Host, made: Counter[tuple[PciAddress, str]]) -> PciAddress:
    assert one.type is not None
    kinds = {
        (device.address, kind.name): kind.available or 0
        for device in host.pci or ()
        for kind in device.mdev_types
    }
    able = {
        address: free - made[address, name]
        for (address, name), free in kinds.items()
        if name == one.type and one.parent in {None, address}
    }
    if not able:
        known = sorted({name for address, name in kinds if one.parent in {None, address}})
        where = "this host" if one.parent is None else str(one.parent)
        listed = ", ".join(known) or "it has none"
        raise PlanError(f"{at}.type", f'"{one.type}"', f"a type that {where} can make: {listed}")
    return max(sorted(able), key=lambda address: able[address])
