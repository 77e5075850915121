"""The PCI Express root ports, the address of what is plugged into one, and the host's devices."""

from __future__ import annotations

from kvmhooks.placement.buses import Expander, Port
from kvmhooks.placement.model import Plan
from kvmhooks.render.domain.element import Element, element, on_off, yes_no
from kvmhooks.values import PciAddress


def devices(plan: Plan) -> list[Element]:
    """The root bus, the host bridges of guest cells, and one root port for each PCI device."""
    root = element("controller", {"type": "pci", "index": 0, "model": "pcie-root"})
    layout = plan.hardware.layout
    expanders = [_expander(expander) for expander in layout.expanders]
    return [root, *expanders, *(_port(port) for port in layout.ports)]


def passed_through(plan: Plan) -> list[Element]:
    """PCI devices of the host, and parts of such (mediated devices)."""
    said = []
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
        said.append(element("hostdev", kind, [*children, address_of(plan, f"pci{at}")]))
    for at, mediated in enumerate(plan.spec.mdev):
        kind = {"mode": "subsystem", "type": "mdev", "model": "vfio-pci"}
        display = {"display": on_off(mediated.display)}
        source = element("source", children=[element("address", {"uuid": mediated.uuid})])
        said.append(
            element("hostdev", {**kind, **display}, [source, address_of(plan, f"mdev{at}")])
        )
    return said


def host_address(address: PciAddress, kind: str | None = None) -> Element:
    """The address of a device on the host."""
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
    address = _address(bus=0, slot=expander.slot, function=0)
    return element("controller", attributes, [target, address])


def _port(port: Port) -> Element:
    target = element("target", {"chassis": port.index, "port": f"{port.number:#x}"})
    address = _address(
        bus=port.parent,
        slot=port.slot,
        function=port.function,
        multifunction="on" if port.announces_others else None,
    )
    attributes = {"type": "pci", "index": port.index, "model": "pcie-root-port"}
    return element("controller", attributes, [target, address])


def address_of(plan: Plan, device: str) -> Element:
    """The address of a device: on the root bus, or behind its port."""
    place = plan.hardware.layout.places[device]
    return _address(
        bus=place.bus,
        slot=place.slot,
        function=place.function,
        multifunction="on" if place.announces_others else None,
    )


def _address(*, bus: int, slot: int, function: int, multifunction: str | None = None) -> Element:
    return element(
        "address",
        {
            "type": "pci",
            "domain": "0x0000",
            "bus": f"{bus:#04x}",
            "slot": f"{slot:#04x}",
            "function": f"{function:#x}",
            "multifunction": multifunction,
        },
    )
