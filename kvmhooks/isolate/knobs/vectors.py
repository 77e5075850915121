"""The interrupts of devices that a VM was given: on the CPUs of the VM that takes them.

VFIO requests a vector once the guest's driver enables it, and calls it ``vfio-msix[N](ADDRESS)``,
``vfio-msi[N](ADDRESS)`` or ``vfio-intx(ADDRESS)`` (drivers/vfio/pci/vfio_pci_intrs.c). Where the
IOMMU posts interrupts to a running vCPU, the host's CPU has no part in it (irq-bypass).
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import View
    from kvmhooks.isolate.state import Held

SETTING: Final = "isolation.vfio"

DEVICES: Final = "sys/bus/pci/devices"

_POSTING_CAPABILITY: Final = 59
"""The bit of the VT-d capability register (VT-d specification, «Capability Register»: PI)."""

_GUEST_VAPIC: Final = 7
"""The bit of the AMD IOMMU's extended features (AMD IOMMU specification, MMIO 0030h: GASup)."""


def places(
    door: Door, view: View, names: Iterable[str]
) -> tuple[dict[str, CpuSet], dict[str, CpuSet]]:
    """Where the vectors of the VMs' devices belong, and what interrupts should rather be near to.

    Both by an interrupt's name; the others are in neither. Near are those of the cards whose
    functions VMs have, which serve these too, and vectors that are left to the host. Where the
    firmware tells no node, all CPUs are near.
    """
    owners = {address: one for one in view.held for address in one.claim.devices}
    goals: dict[str, CpuSet] = {}
    near = _of_cards(door, owners)
    for name in names if owners else ():
        try:
            vector, address = parse(door.read(f"sys/kernel/irq/{name}/actions"))
        except OSError:  # it was freed, or nothing tells what it is
            continue
        if address not in owners:
            continue
        if cpus := place(owners[address], vector):
            goals[name] = cpus
        elif local := _local(door, address):
            near[name] = local
    return goals, near


def _of_cards(door: Door, owned: Iterable[str]) -> dict[str, CpuSet]:
    """The CPUs near to the cards of virtual functions, by their interrupts' names."""
    links = (door.link(f"{DEVICES}/{address}/physfn") for address in owned)
    found: dict[str, CpuSet] = {}
    for card in {link.rpartition("/")[2] for link in links if link}:
        if local := _local(door, card):
            found |= dict.fromkeys(door.names(f"{DEVICES}/{card}/msi_irqs"), local)
    return found


def _local(door: Door, address: str) -> CpuSet:
    """``local_cpulist`` (Documentation/ABI/testing/sysfs-bus-pci)."""
    try:
        return CpuSet.parse(door.read(f"{DEVICES}/{address}/local_cpulist"))
    except (OSError, ValueFormatError):
        return CpuSet()


def parse(actions: str) -> tuple[int, str]:
    """(vector, PCI address) of a VFIO interrupt; the address is empty for any other."""
    if not actions.startswith("vfio-") or not actions.endswith(")"):
        return 0, ""
    head, _, address = actions[:-1].rpartition("(")
    number = head.partition("[")[2].rstrip("]")
    return int(number) if number.isdecimal() else 0, address.lower()


def place(one: Held, vector: int) -> CpuSet:
    """The CPU for a vector: pure. None where it is to be treated as the host's own interrupts."""
    wish = one.claim.setting(SETTING)
    cpus = [int(cpu) for _, cpu in sorted(one.pins.items(), key=_by_number) if cpu.isdecimal()]
    cpus = [cpu for cpu in cpus if cpu in one.claim.exclusive] or list(one.claim.exclusive)
    if wish == "housekeeping" or not cpus:
        return CpuSet()
    return CpuSet({cpus[vector % len(cpus)] if wish == "spread" else cpus[0]})


def _by_number(pin: tuple[str, str]) -> int:
    return int(pin[0])


def posted(door: Door) -> str:
    """Why the placing of VFIO's vectors has no effect on this host; empty when it has.

    KVM and every IOMMU must be able to, and nobody have switched it off.
    """
    try:
        words = door.read("proc/cmdline").split()
    except OSError:
        words = []
    units = door.names("sys/class/iommu")
    if not units or any("nopost" in word for word in words if word.startswith("intremap=")):
        return ""
    for module, parameter, register, bit in (
        ("kvm_intel", "enable_apicv", "intel-iommu/cap", _POSTING_CAPABILITY),
        ("kvm_amd", "avic", "amd-iommu/features", _GUEST_VAPIC),
    ):
        switch = f"sys/module/{module}/parameters/{parameter}"
        paths = [f"sys/class/iommu/{unit}/{register}" for unit in units]
        if _is_on(door, switch) and all(_has_bit(door, path, bit) for path in paths):
            return f"{module} has {parameter}, and the IOMMU posts interrupts to running vCPUs"
    return ""


def _is_on(door: Door, path: str) -> bool:
    try:
        return door.read(path) in {"Y", "1"}
    except OSError:
        return False


def _has_bit(door: Door, path: str, bit: int) -> bool:
    try:
        return bool(int(door.read(path).partition(":")[0], 16) >> bit & 1)
    except (OSError, ValueError):
        return False
