"""The verdict on giving a device to a VM, and what speaks against it.

Pure. A group of the IOMMU is given whole or not at all (Documentation/driver-api/vfio.rst), so what
speaks against one member speaks against all; bridges of a group stay with the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from kvmhooks.devices.resets import Reset, reset_of, sentences_about
from kvmhooks.host.files.formats import split_words
from kvmhooks.values import PciAddress

if TYPE_CHECKING:
    from kvmhooks.devices.uses import Use, Uses
    from kvmhooks.host.bus.devices import PciDevice
    from kvmhooks.host.model import Host

Reason = Literal[
    "no-iommu", "remapping", "mounted", "swap", "held", "route", "bridge", "console", "screen",
    "functions", "group",
]  # fmt: skip

_BRIDGE: Final = "0x06"
_VFIO: Final = frozenset({"vfio-pci", "pci-stub"})
_OFF: Final = "intremap=off"
"""Documentation/admin-guide/kernel-parameters.txt: no interrupt remapping, whatever there is."""
_OF_BRIDGES: Final = frozenset({None, "pcieport", *_VFIO})
"""Drivers that a bridge in a group of a VM may have (``driver_managed_dma``, linux/pci.h)."""
_BRIDGES_SINCE: Final = (5, 19)
"""The first kernel that looks at them (``iommu_group_claim_dma_owner()``)."""
_RELEASE: Final = re.compile(r"(\d{1,4})\.(\d{1,4})", re.ASCII)
_OF_GROUP: Final = 64
"""Objections to the others of a group that are told: one is enough to refuse it."""
_ACS: Final = "pcie_acs_override"


@frozen
class Objection:
    """One thing that speaks against giving a device away."""

    reason: Reason
    what: str
    evidence: str
    """The file, or the fact, that says so."""
    may_be_allowed: bool = True
    """False where no word of a person's could make it work."""

    def __str__(self) -> str:
        return f"{self.what} [{self.evidence}]"


@frozen
class Judged:
    """One device that could be given to a VM, and whether it can."""

    device: PciDevice
    goes_with: tuple[PciAddress, ...] = ()
    """The others of its group, which go to the same VM; bridges are not among them."""
    objections: tuple[Objection, ...] = ()
    notes: tuple[str, ...] = ()
    """Notes that a person should know and that are no objections."""
    reset: Reset = Reset("unknown")  # noqa: RUF009 -- frozen
    """The way to reset it between two VMs."""
    is_given: bool = False
    """Its driver is one that waits for a VM or serves one already."""

    @property
    def verdict(self) -> Literal["free", "refused", "given"]:
        """``given`` to a VM already or set aside for one, ``refused``, or ``free``."""
        if self.is_given:
            return "given"
        return "refused" if self.objections else "free"


def judge(host: Host, uses: Uses) -> tuple[Judged, ...]:
    """Judge every device of a host that is no bridge. ``host`` needs «pci», «iommu», «kernel»."""
    devices = {device.address: device for device in host.pci or () if not _is_bridge(device)}
    bridges = {device.address: device for device in host.pci or () if _is_bridge(device)}
    own = {
        address: (*_common(host, device), *_own(device, uses, devices))
        for address, device in devices.items()
    }
    buses: dict[tuple[int, int], list[PciDevice]] = {}
    for device in host.pci or ():
        buses.setdefault((device.address.domain, device.address.bus), []).append(device)
    resets = {at: reset_of(device, buses[at.domain, at.bus]) for at, device in devices.items()}
    return tuple(
        Judged(
            device=device,
            goes_with=_fellows(device, devices),
            objections=(
                *own[address],
                *islice(_of_group(device, devices, own), _OF_GROUP),
                *_of_bridges(host, device, bridges),
            ),
            notes=tuple(_notes(host, device, devices, resets[address])),
            reset=resets[address],
            is_given=device.driver in _VFIO,
        )
        for address, device in devices.items()
    )


def _is_bridge(device: PciDevice) -> bool:
    return (device.class_ or "").startswith(_BRIDGE)


def _fellows(device: PciDevice, devices: Mapping[PciAddress, PciDevice]) -> tuple[PciAddress, ...]:
    return tuple(other for other in device.iommu_group_members if other in devices)


def _common(host: Host, device: PciDevice) -> Iterator[Objection]:
    """Yield what speaks against every device of this host."""
    if device.iommu_group is None:
        what = "is in no IOMMU group: nothing would keep the VM from all of the host's memory"
        at = f"/sys/bus/pci/devices/{device.address}/iommu_group"
        yield Objection("no-iommu", what, at, may_be_allowed=False)
    else:
        what = "interrupts are not remapped: the VM could send any interrupt to the host"
        cmdline = (host.kernel.cmdline if host.kernel is not None else None) or ""
        if _OFF in split_words(cmdline):
            yield Objection("remapping", what, f"{_OFF} in /proc/cmdline")
        elif host.iommu is not None and host.iommu.interrupt_remapping is False:
            yield Objection("remapping", what, "/sys/class/iommu/*/intel-iommu/ecap")


def _own(
    device: PciDevice, uses: Uses, devices: Mapping[PciAddress, PciDevice]
) -> Iterator[Objection]:
    """Yield the objections from what the host does with it."""
    for name in device.block:
        yield from _used(uses.disks.get(name, ()))
    for name in device.net:
        yield from _used(uses.networks.get(name, ()))
    yield from _used(uses.displays.get(str(device.address), ()))
    if device.boot_vga:
        yield from _used(uses.boot_display)
    yield from _functions_in_use(device, uses, devices)


def _used(uses: Iterable[Use]) -> Iterator[Objection]:
    for use in uses:
        yield Objection(use.kind, f"{use.name} {use.what}", use.evidence)


def _functions_in_use(
    device: PciDevice, uses: Uses, devices: Mapping[PciAddress, PciDevice]
) -> Iterator[Objection]:
    """Yield an objection to a physical function whose virtual ones serve somebody."""
    for address in device.sriov.vfs if device.sriov is not None else ():
        function = devices.get(address)
        if function is None:
            continue
        at = f"/sys/bus/pci/devices/{address}/driver"
        if function.driver in _VFIO:
            what = f"its function {address} is with {function.driver}, for a VM"
            yield Objection("functions", what, at)
        for name in function.net:
            for use in uses.networks.get(name, ()):
                what = f"its function {address}: {name} {use.what}"
                yield Objection("functions", what, use.evidence)


def _of_group(
    device: PciDevice,
    devices: Mapping[PciAddress, PciDevice],
    own: Mapping[PciAddress, tuple[Objection, ...]],
) -> Iterator[Objection]:
    """Yield what speaks against the others of its group."""
    for address in _fellows(device, devices):
        for objection in own[address]:
            if objection.reason not in {"no-iommu", "remapping"}:
                what = f"{address} is in the same group {device.iommu_group}: {objection.what}"
                yield Objection("group", what, objection.evidence)


def _of_bridges(
    host: Host, device: PciDevice, bridges: Mapping[PciAddress, PciDevice]
) -> Iterator[Objection]:
    """Yield what speaks against the bridges of its group, which stay with the host."""
    release = (host.kernel.release if host.kernel is not None else None) or ""
    numbers = _RELEASE.match(release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _BRIDGES_SINCE:
        return
    for address in device.iommu_group_members:
        bridge = bridges.get(address)
        if bridge is not None and bridge.driver not in _OF_BRIDGES:
            what = (
                f"{address}, a bridge in the same group {device.iommu_group}, is {bridge.driver}'s"
            )
            at = f"/sys/bus/pci/devices/{address}/driver"
            yield Objection("group", what, at, may_be_allowed=False)


def _notes(
    host: Host, device: PciDevice, devices: Mapping[PciAddress, PciDevice], reset: Reset
) -> Iterator[str]:
    yield from sentences_about(reset, given=_fellows(device, devices))
    kinds = [
        f"{kind.name} ({'?' if kind.available is None else kind.available} more)"
        for kind in device.mdev_types
    ]
    if kinds:
        yield f"can be divided into mediated devices: {', '.join(kinds)}"
    slots = {(other.domain, other.bus, other.slot) for other in _fellows(device, devices)}
    if slots - {(device.address.domain, device.address.bus, device.address.slot)}:
        yield f"shares group {device.iommu_group} with other slots: no ACS between them"
    if host.kernel is not None and _ACS in (host.kernel.cmdline or ""):
        yield f"{_ACS} is on the kernel's command line: groups say more than the hardware keeps"
