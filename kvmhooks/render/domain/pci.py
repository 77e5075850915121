"""The PCI Express root ports, and the address of what is plugged into one."""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.render.buses import Port, port_of, ports
from kvmhooks.render.domain.element import Element, element


def devices(plan: Plan) -> list[Element]:
    """The root bus and one root port for each PCI device."""
    root = element("controller", {"type": "pci", "index": 0, "model": "pcie-root"})
    return [root, *(_port(port) for port in ports(plan))]


def _port(port: Port) -> Element:
    target = element("target", {"chassis": port.index, "port": f"{port.number:#x}"})
    address = _address(
        bus=0,
        slot=port.slot,
        function=port.function,
        multifunction="on" if port.announces_others else None,
    )
    attributes = {"type": "pci", "index": port.index, "model": "pcie-root-port"}
    return element("controller", attributes, [target, address])


def address_of(plan: Plan, device: str) -> Element:
    """The address of a device: alone on the bus behind its port."""
    return _address(bus=port_of(plan, device).index, slot=0, function=0)


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
