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

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.system.system import System

SETTING: Final = "isolation.vfio"

DEVICES: Final = "sys/bus/pci/devices"

_POSTING_CAPABILITY: Final = 59
"""The bit of the VT-d capability register (VT-d specification, «Capability Register»: PI)."""

_GUEST_VAPIC: Final = 7
"""The bit of the AMD IOMMU's extended features (AMD IOMMU specification, MMIO 0030h: GASup)."""


def places(
    system: System, view: View, names: Iterable[str]
) -> tuple[dict[str, CpuSet], dict[str, CpuSet]]:
    """Return the CPUs of the VMs' devices' vectors, and those that interrupts should be near.

    Both by an interrupt's name; the others are in neither. Near are those of the cards whose
    functions VMs have, which serve these too, and vectors that are left to the host. Where the
    firmware tells no node, all CPUs are near.
    """
    owners = {address: vm for vm in view.held for address in vm.claim.devices}
    goals: dict[str, CpuSet] = {}
    near = _of_cards(system, owners)
    for name in names if owners else ():
        try:
            vector, address = parse(system.read(f"sys/kernel/irq/{name}/actions"))
        except OSError:  # it was freed, or nothing tells what it is
            continue
        if address not in owners:
            continue
        if cpus := place(owners[address], vector):
            goals[name] = cpus
        elif local := _local(system, address):
            near[name] = local
    return goals, near


def having(system: System, view: View, name: str) -> list[Held]:
    """Return the VMs of whose devices, or of their cards, an interrupt is."""
    try:
        address = parse(system.read(f"sys/kernel/irq/{name}/actions"))[1]
    except OSError:  # it was freed, or nothing tells what it is
        address = ""
    return [
        vm
        for vm in view.held
        if address in vm.claim.devices or name in _of_cards(system, vm.claim.devices)
    ]


def _of_cards(system: System, owned: Iterable[str]) -> dict[str, CpuSet]:
    """Return the CPUs near to the cards of virtual functions, by their interrupts' names."""
    links = (system.link(f"{DEVICES}/{address}/physfn") for address in owned)
    found: dict[str, CpuSet] = {}
    for card in {link.rpartition("/")[2] for link in links if link}:
        if local := _local(system, card):
            found |= dict.fromkeys(system.names(f"{DEVICES}/{card}/msi_irqs"), local)
    return found


def _local(system: System, address: str) -> CpuSet:
    """Return ``local_cpulist`` (Documentation/ABI/testing/sysfs-bus-pci)."""
    try:
        return CpuSet.parse(system.read(f"{DEVICES}/{address}/local_cpulist"))
    except (OSError, ValueFormatError):
        return CpuSet()


def parse(actions: str) -> tuple[int, str]:
    """Return (vector, PCI address) of a VFIO interrupt; the address is empty for any other."""
    if not actions.startswith("vfio-") or not actions.endswith(")"):
        return 0, ""
    head, _, address = actions[:-1].rpartition("(")
    number = head.partition("[")[2].rstrip("]")
    return int(number) if number.isdecimal() else 0, address.lower()


def place(vm: Held, vector: int) -> CpuSet:
    """Return the CPU for a vector: pure. None where it is treated as the host's own interrupts."""
    requested = vm.claim.setting(SETTING)
    cpus = [int(cpu) for _, cpu in sorted(vm.pins.items(), key=_by_number) if cpu.isdecimal()]
    cpus = [cpu for cpu in cpus if cpu in vm.claim.exclusive] or list(vm.claim.exclusive)
    if requested == "housekeeping" or not cpus:
        return CpuSet()
    return CpuSet({cpus[vector % len(cpus)] if requested == "spread" else cpus[0]})


def _by_number(pin: tuple[str, str]) -> int:
    return int(pin[0])


def posted(system: System) -> str:
    """Return why the placing of VFIO's vectors has no effect on this host; empty when it has.

    KVM and every IOMMU must be able to, and nobody have switched it off.
    """
    try:
        words = system.read("proc/cmdline").split()
    except OSError:
        words = []
    units = system.names("sys/class/iommu")
    if not units or any("nopost" in word for word in words if word.startswith("intremap=")):
        return ""
    for module, parameter, register, bit in (
        ("kvm_intel", "enable_apicv", "intel-iommu/cap", _POSTING_CAPABILITY),
        ("kvm_amd", "avic", "amd-iommu/features", _GUEST_VAPIC),
    ):
        switch = f"sys/module/{module}/parameters/{parameter}"
        paths = [f"sys/class/iommu/{unit}/{register}" for unit in units]
        if _is_on(system, switch) and all(_has_bit(system, path, bit) for path in paths):
            return f"{module} has {parameter}, and the IOMMU posts interrupts to running vCPUs"
    return ""


def _is_on(system: System, path: str) -> bool:
    try:
        return system.read(path) in {"Y", "1"}
    except OSError:
        return False


def _has_bit(system: System, path: str, bit: int) -> bool:
    try:
        return bool(int(system.read(path).partition(":")[0], 16) >> bit & 1)
    except (OSError, ValueError):
        return False
