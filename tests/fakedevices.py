"""PCI devices and interrupts of a fake host, as Linux writes them.

(Documentation/ABI/testing/sysfs-bus-pci and sysfs-kernel-irq.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvmhooks.values import CpuSet, PciAddress

if TYPE_CHECKING:
    from tests.fakehost import FakeHost, Writer

PCI = "sys/bus/pci/devices"


@dataclass(frozen=True)
class FakePci:
    """One function; one with ``total_vfs`` has virtual functions, numbered on from its own."""

    address: str
    class_: str = "0x020000"
    vendor: str = "0x8086"
    device: str = "0x1572"
    node: int = -1
    driver: str | None = None
    iommu_group: int | None = None
    physfn: str | None = None
    total_vfs: int | None = None
    vfs: tuple[str, ...] = ()
    offset: int | None = None
    stride: int | None = None
    reset: str | None = None
    boot_vga: bool | None = None
    net: tuple[str, ...] = ()
    block: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The directory where the kernel really has it."""
        return f"devices/pci{self.address[:7]}/{self.address}"


@dataclass(frozen=True)
class FakeIrq:
    """One interrupt."""

    number: int
    actions: str = ""
    chip: str = "PCI-MSI"
    affinity: str = "0"
    effective: str = "0"
    device: str | None = None
    node: int = 0
    counts: dict[int, int] = field(default_factory=dict)


def write_devices(writer: Writer, host: FakeHost) -> None:
    """Write the devices, then the interrupts and who has them."""
    for device in host.pci:
        _write_device(writer, device)
    for irq in host.irqs:
        _write_irq(writer, irq)
    if host.irqs:
        writer.put("proc/interrupts", _counts(host))


def nic_with_functions(
    address: str, count: int, *, total: int, node: int, group: int
) -> tuple[FakePci, ...]:
    """A network card with virtual functions, each in an IOMMU group of its own."""
    physical = PciAddress.parse(address)
    places = [(physical.slot << 3) + 16 + at for at in range(count)]
    functions = [
        PciAddress(physical.domain, physical.bus + at // 256, at % 256 >> 3, at % 8)
        for at in places
    ]
    names = tuple(map(str, functions))
    return (
        FakePci(
            address,
            node=node,
            driver="i40e",
            iommu_group=group,
            total_vfs=total,
            vfs=names,
            reset="flr bus",
            net=(f"ens{group}",),
        ),
        *(
            FakePci(
                name,
                device="0x154c",
                node=node,
                driver="iavf",
                iommu_group=group + 1 + at,
                physfn=address,
                reset="flr",
            )
            for at, name in enumerate(names)
        ),
    )


def _write_device(writer: Writer, device: FakePci) -> None:
    path = f"sys/{device.path}"
    writer.link(f"{PCI}/{device.address}", f"../../../{device.path}")
    for name, value in (
        ("class", device.class_),
        ("vendor", device.vendor),
        ("device", device.device),
        ("numa_node", device.node),
        ("irq", 0),
    ):
        writer.put(f"{path}/{name}", value)
    if device.reset is not None:
        writer.put(f"{path}/reset")
        writer.put(f"{path}/reset_method", device.reset)
    if device.boot_vga is not None:
        writer.put(f"{path}/boot_vga", int(device.boot_vga))
    _write_relations(writer, device, path)
    for name in device.net:
        writer.put(f"{path}/net/{name}/mtu", 1500)
        writer.link(f"sys/class/net/{name}", f"../../{device.path}/net/{name}")
    for name in device.block:
        writer.put(f"{path}/nvme/nvme0/{name}/size", 1000)
        writer.link(f"sys/block/{name}", f"../{device.path}/nvme/nvme0/{name}")


def _write_relations(writer: Writer, device: FakePci, path: str) -> None:
    """Write the driver, the IOMMU group, and the functions of a card."""
    if device.driver is not None:
        writer.link(f"{path}/driver", f"../../../bus/pci/drivers/{device.driver}")
    if device.iommu_group is not None:
        group = f"kernel/iommu_groups/{device.iommu_group}"
        writer.link(f"{path}/iommu_group", f"../../../{group}")
        writer.link(f"sys/{group}/devices/{device.address}", f"../../../../{device.path}")
    if device.physfn is not None:
        writer.link(f"{path}/physfn", f"../{device.physfn}")
    if device.total_vfs is not None:
        writer.put(f"{path}/sriov_totalvfs", device.total_vfs)
        writer.put(f"{path}/sriov_numvfs", len(device.vfs))
        for name in ("offset", "stride"):
            if getattr(device, name) is not None:
                writer.put(f"{path}/sriov_{name}", getattr(device, name))
        for at, function in enumerate(device.vfs):
            writer.link(f"{path}/virtfn{at}", f"../{function}")


def _write_irq(writer: Writer, irq: FakeIrq) -> None:
    described = f"sys/kernel/irq/{irq.number}"
    for name, value in (
        ("actions", irq.actions),
        ("chip_name", irq.chip),
        ("hwirq", irq.number + 1000),
        ("type", "edge"),
    ):
        writer.put(f"{described}/{name}", value)
    routed = f"proc/irq/{irq.number}"
    writer.put_set(routed, "smp_affinity", "smp_affinity_list", CpuSet.parse(irq.affinity))
    effective = CpuSet.parse(irq.effective)
    writer.put_set(routed, "effective_affinity", "effective_affinity_list", effective)
    writer.put(f"{routed}/node", irq.node)
    if irq.device is not None:
        writer.put(f"{PCI}/{irq.device}/msi_irqs/{irq.number}", "msix")


def _counts(host: FakeHost) -> str:
    lines = ["            " + "       ".join(f"CPU{cpu}" for cpu in host.online)]
    for irq in host.irqs:
        counts = " ".join(f"{irq.counts.get(cpu, 0):>10}" for cpu in host.online)
        lines.append(f"{irq.number:>4}: {counts}  {irq.chip}    0-edge      {irq.actions}")
    total = " ".join(f"{7:>10}" for _ in host.online)
    return "\n".join([*lines, f" NMI: {total}   Non-maskable interrupts"])
