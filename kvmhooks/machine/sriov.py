"""Virtual functions: which one of a card is meant, and those that are yet to be made.

A card makes its functions when the VM starts (``kvmhooks.isolate.resources.sriov``), so a plan has
to know their addresses before. They follow from the card's own by ``sriov_offset`` and
``sriov_stride`` (``pci_iov_virtfn_bus()`` and ``pci_iov_virtfn_devfn()``, drivers/pci/iov.c).
Should a card change these with the size of its pool, the hook finds no such device and refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.host.bus.devices import PciDevice
from kvmhooks.host.bus.devices import Sriov as Card
from kvmhooks.host.model import Host
from kvmhooks.spec.devices import Sriov
from kvmhooks.spec.forms import Number, PhysicalName
from kvmhooks.spec.model import Pci, VmSpec
from kvmhooks.values import PciAddress

_IN_USE: Final = "vfio-pci"
"""A function that has this driver may be another tool's VM's: it is the last to be chosen."""


def choose_function(at: str, device: Pci, host: Host, taken: set[PciAddress]) -> Pci:
    """Return the table with the address of its function, that of its card, and its number.

    Raises ``PlanError``.
    """
    sriov = device.sriov
    assert sriov is not None
    card = _card(f"{at}.sriov.pf", sriov.pf, host)
    assert card.sriov is not None
    total = card.sriov.total_vfs or 0
    wanted = 0 if sriov.vf == "auto" else sriov.vf + 1
    pool = card.sriov.num_vfs or min(total, max(sriov.pool or 0, wanted) or total)
    if wanted > pool or (sriov.pool or 0) > (card.sriov.num_vfs or total):
        key, found = ("vf", f"{sriov.vf}") if wanted > pool else ("pool", str(sriov.pool))
        there = f"a pool of {pool}, which cannot grow" if card.sriov.num_vfs else f"at most {total}"
        raise PlanError(f"{at}.sriov.{key}", found, f"what {card.address} has: {there}")
    functions = [_address(card, number) for number in range(pool)]
    if sriov.vf == "auto":
        drivers = {device.address: device.driver for device in host.pci or ()}
        free = [function for function in functions if function not in taken]
        if not free:
            expected = "one more: say how many in sriov.pool of the VM that starts first"
            raise PlanError(f"{at}.sriov.vf", f"none of {pool} that is free", expected)
        chosen = min(
            free,
            key=lambda function: (drivers.get(function) == _IN_USE, bool(drivers.get(function))),
        )
    else:
        chosen = functions[sriov.vf]
    number = functions.index(chosen)
    settled = evolve(
        sriov,
        pf=PhysicalName(str(card.address)),
        vf=Number(number),
        pool=max(sriov.pool or 0, number + 1),
    )
    return evolve(device, address=chosen, sriov=settled)


def with_coming(host: Host, spec: VmSpec) -> Host:
    """Return the host with the functions that will be made for a VM: where their cards are.

    Every virtual function has FLR (PCI Express Base Specification, SR-IOV, «VF FLR»).
    """
    there = {device.address: device for device in host.pci or ()}
    coming = [
        evolve(
            there[PciAddress.parse(device.sriov.pf)], address=device.chosen, sriov=None,
            physfn=PciAddress.parse(device.sriov.pf), net=(), block=(), driver=None,
            iommu_group=None, iommu_group_members=(), reset_methods=("flr",), can_reset=True,
        )
        for device in spec.pci
        if device.sriov is not None and device.address not in there
    ]  # fmt: skip
    return evolve(host, pci=(*(host.pci or ()), *coming)) if coming else host


def pools_of(functions: Sequence[Sriov]) -> dict[str, int]:
    """Return how many functions each card has to have, by its address."""
    pools: dict[str, int] = {}
    for function in functions:
        pools[function.pf] = max(pools.get(function.pf, 0), function.pool or 0)
    return pools


def settings_of(function: Sriov) -> dict[str, str]:
    """Return what a card is to let a function do, in the policy's words; empty for nothing."""
    return {
        name: ("yes" if value else "no") if isinstance(value, bool) else str(value)
        for name in ("mac", "vlan", "trust", "spoofchk", "rate")
        if (value := getattr(function, name)) is not None
    }


def _card(at: str, name: str, host: Host) -> PciDevice:
    cards = [
        device for device in host.pci or () if device.sriov is not None and device.sriov.total_vfs
    ]
    for card in cards:
        if name in {str(card.address), *card.net}:
            return card
    known = ", ".join("/".join((str(card.address), *card.net)) for card in cards) or "it has none"
    raise PlanError(at, f'"{name}"', f"a card of this host that has virtual functions: {known}")


def _address(card: PciDevice, number: int) -> PciAddress:
    """Return the address of a function, which may be on a bus after its card's."""
    sriov = card.sriov
    assert sriov is not None
    if number < len(sriov.vfs):
        return sriov.vfs[number]
    return card.address.further(
        _known(card, "offset", sriov) + number * _known(card, "stride", sriov)
    )


def _known(card: PciDevice, name: str, sriov: Card) -> int:
    value = sriov.offset if name == "offset" else sriov.stride
    if value is None:
        at = f"/sys/bus/pci/devices/{card.address}/sriov_{name}"
        raise PlanError("host", f"no {at}", "a kernel that tells where functions will be")
    return value
