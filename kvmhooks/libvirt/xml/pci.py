"""The PCI Express root ports, the address of what is plugged into one, and the host's devices."""

from __future__ import annotations

from kvmhooks.machine.element import Element, element, on_off, pci_address, yes_no
from kvmhooks.machine.pci_layout import Expander, GuestPciAddress, Port
from kvmhooks.placement.model import Plan
from kvmhooks.values import PciAddress


def devices(plan: Plan) -> list[Element]:
    """Return the root bus, the host bridges of guest cells, and a root port for each PCI device."""
    root = element("controller", {"type": "pci", "index": 0, "model": "pcie-root"})
    layout = plan.hardware.layout
    expanders = [_expander(expander) for expander in layout.expanders]
    return [root, *expanders, *(_port(port) for port in layout.ports)]


def passed_through(plan: Plan) -> list[Element]:
    """Return PCI devices of the host, and parts of such (mediated devices)."""
    elements = []
    for at, device in enumerate(plan.spec.pci):
        is_libvirts = device.managed and device.sriov is None
        kind = {"mode": "subsystem", "type": "pci", "managed": yes_no(is_libvirts)}
        children = [
            element("driver", {"name": "vfio"}),
            element("source", children=[host_address(device.chosen)]),
        ]
        if device.rom is not None or device.rom_bar is not None:
            bar = None if device.rom_bar is None else on_off(device.rom_bar)
            children.append(element("rom", {"bar": bar, "file": device.rom}))
        elements.append(element("hostdev", kind, [*children, address_of(plan, f"pci{at}")]))
    for at, mediated in enumerate(plan.spec.mdev):
        kind = {"mode": "subsystem", "type": "mdev", "model": "vfio-pci"}
        display = {"display": on_off(mediated.display)}
        source = element("source", children=[element("address", {"uuid": mediated.uuid})])
        elements.append(
            element("hostdev", {**kind, **display}, [source, address_of(plan, f"mdev{at}")])
        )
    return elements


def host_address(address: PciAddress, kind: str | None = None) -> Element:
    """Return the address of a device on the host."""
    return element(
        "address",
        {
            "type": kind,
            "domain": f"{address.domain:#06x}",
            "bus": f"{address.bus:#04x}",
            "slot": f"{address.slot:#04x}",
            "function": f"{address.function:#x}",
        },
    )


def _expander(expander: Expander) -> Element:
    node = element("node", text=expander.cell)
    target = element("target", {"busNr": expander.first_bus}, [node])
    attributes = {"type": "pci", "index": expander.index, "model": "pcie-expander-bus"}
    address = pci_address(GuestPciAddress(0, expander.slot))
    return element("controller", attributes, [target, address])


def _port(port: Port) -> Element:
    target = element("target", {"chassis": port.index, "port": f"{port.number:#x}"})
    address = pci_address(
        GuestPciAddress(port.parent, port.slot, port.function, port.announces_others)
    )
    attributes = {"type": "pci", "index": port.index, "model": "pcie-root-port"}
    return element("controller", attributes, [target, address])


def address_of(plan: Plan, device: str) -> Element:
    """Return the address of a device: on the root bus, or behind its port."""
    return pci_address(plan.hardware.layout.places[device])
